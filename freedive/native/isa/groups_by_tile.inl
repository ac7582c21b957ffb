// Groups for levels with 16 registers: the tiles of a panel come one after the other, and float sums stay in memory.
// Included by dot_short.inl and dot_tile.inl, which define GroupRows, multiply() and kTilesAtOnce.

// The results of a panel times R rows. They stay in memory, in `out`, because integer accumulators need all registers.
template <int R>
struct Sums {
    float* at;
    int stride;
    LANES Sums(float* out, int stride, bool from_zero) : at(out), stride(stride) {
        if (from_zero) unroll<R>(EACH(r) { unroll<2>(EACH(t) { f_store(of(r, t), f_set(0.0f)); }); });
    }
    LANES float* of(int row, int tile) const { return at + row * stride + tile * kTileRows; }
    LANES void store() {}
};

// Adds the scaled products of quads [First, Last) of N tiles to `sums`. The scales are those of half group Half.
template <class T, int First, int Last, int Half, int N, int R>
LANES void add_tiles(const std::uint8_t* tiles, const TileScales<T>* scales, const GroupRows<T, R>& rows,
                     const Sums<R>& sums, int tile) {
    I out[N][R];
    multiply<T, First, Last, Half>(tiles, rows, out);
    unroll<R>(EACH(r) {
        unroll<N>(EACH(t) {
            float* at = sums.of(r, tile + t);
            F sum = add_product(out[t][r], scales[t].scale[Half], f_set(rows.scale(r)), f_load(at));
            if constexpr (T::minima && !T::halves) sum = add_minimum<T, 0>(scales[t], rows.a[r], sum);
            f_store(at, sum);
        });
    });
}

template <class T, int First, int Last, int Half, int R>
LANES void add_quads(const std::uint8_t* codes, const TileScales<T> (&scales)[2], const GroupRows<T, R>& rows,
                     const Sums<R>& sums) {
    constexpr int n = kTilesAtOnce<T, R>;
    unroll<2 / n>(EACH(i) {
        constexpr int t = i * n;
        add_tiles<T, First, Last, Half, n>(codes + t * kLine * T::tile_lines, scales + t, rows, sums, t);
    });
}

template <class T, int R>
LANES void add_group(const std::uint8_t* span, const std::uint8_t* group, const QuantisedGroup* const* a,
                     Sums<R>& sums) {
    const std::uint8_t* codes = group + kLine * T::group_lines;
    const TileScales<T> scales[2] = {{span, group, 0}, {span, group, 1}};
    const GroupRows<T, R> rows(a);
    if constexpr (T::halves) {
        add_quads<T, 0, kQuads / 2, 0>(codes, scales, rows, sums);
        add_quads<T, kQuads / 2, kQuads, 1>(codes, scales, rows, sums);
    } else {
        add_quads<T, 0, kQuads, 0>(codes, scales, rows, sums);
    }
    if constexpr (T::minima && T::halves)
        unroll<R>(EACH(r) {
            unroll<2>(EACH(t) {
                float* sum = sums.of(r, t);
                f_store(sum, add_minimum<T, 1>(scales[t], a[r], add_minimum<T, 0>(scales[t], a[r], f_load(sum))));
            });
        });
}
