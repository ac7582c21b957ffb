// Products of groups for levels without an instruction that adds four products to a 32-bit accumulator. Codes of up to
// six bits are multiplied by the high and the low halves of activations in 16-bit accumulators. Each is added to a
// 32-bit accumulator before it can overflow; that of high halves is multiplied by 256 there. Wider codes and their
// activations are converted to 16-bit words; one instruction multiplies two pairs of words and adds the products.

#include "groups.inl"

template <class T>
constexpr bool kTakesWords = T::code_bits > 6;

template <class T>
constexpr int max_code() {
    int most = T::code_bits == T::bits ? (1 << T::bits) - 1 : 0;
    if constexpr (T::code_bits != T::bits)
        for (const int code : T::table) most = code > most ? code : most;
    return most;
}
// The number of quads that a 16-bit accumulator can add without overflow. A lane adds two products of each quad, and a
// half of an activation is at least -128.
template <class T>
constexpr int kShortQuads = 32767 / (2 * max_code<T>() * 128);

template <class T, int First, int Last, int N, int V>
LANES void dot_short(const std::uint8_t* tiles, const std::int8_t* const (&x)[V], S (&acc)[N][V]) {
    if constexpr (First < Last) {
        unroll<N>(EACH(t) {
            const C codes = load_codes<T, First>(tiles + t * kLine * T::tile_lines);
            unroll<V>(EACH(v) { acc[t][v] = s_dot(acc[t][v], codes, four_bytes(x[v] + 4 * First)); });
        });
        dot_short<T, First + 1, Last>(tiles, x, acc);
    }
}

// out = the products of quads [First, Last) of N tiles and V vectors of activation codes, times Unit. They are added to
// `out` if Adds is true. If V is 2 * R, the first R vectors are high halves, the others are low halves.
template <class T, int Unit, int First, int Last, bool Adds = false, int N, int V, int R>
LANES void multiply_tiles(const std::uint8_t* tiles, const std::int8_t* const (&x)[V], I (&out)[N][R]) {
    constexpr int end = First + kShortQuads<T> < Last ? First + kShortQuads<T> : Last;
    constexpr int first_unit = V == R ? Unit : Unit << kLowBits;
    S acc[N][V];
    unroll<N>(EACH(t) { unroll<V>(EACH(v) { acc[t][v] = s_zero(); }); });
    dot_short<T, First, end>(tiles, x, acc);
    unroll<N>(EACH(t) {
        unroll<R>(EACH(r) {
            I total = s_total<first_unit>(acc[t][r]);
            if constexpr (V > R) total = i_add(total, s_total<Unit>(acc[t][R + r]));
            out[t][r] = Adds ? i_add(out[t][r], total) : total;
        });
    });
    if constexpr (end < Last) multiply_tiles<T, Unit, end, Last, true>(tiles, x, out);
}

// Adds the products of a tile and activations that were converted to words.
template <class T, int First, int Last, int R>
LANES void add_words(const std::uint8_t* tile, const std::int16_t (&words)[R][kGroup], I (&out)[R]) {
    if constexpr (First < Last) {
        const W codes = w_codes(load_codes<T, First>(tile));
        unroll<R>(EACH(r) {
            const auto* quad = (const std::int8_t*)(words[r] + 2 * First);
            out[r] = w_dot(out[r], codes, four_bytes(quad), four_bytes(quad + 2 * kOddWords));
        });
        add_words<T, First + 1, Last>(tile, words, out);
    }
}

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

// The activation rows of a group, and values that are computed once for all tiles.
template <int R>
struct GroupRows {
    const QuantisedGroup* const* a;
    int num_low;  // the number of rows with low halves
    alignas(32) std::int16_t words[R][kGroup];
};

constexpr int kShortVectors = 6;  // the accumulators of this many vectors fit in the registers

// Adds the products of a tile and low halves to `products`, which has those of the high halves.
template <class T, int First, int Last>
__attribute__((noinline)) void add_low(const std::uint8_t* tile, const std::int8_t* low, std::int32_t* products) {
    const std::int8_t* const x[1] = {low};
    I out[1][1];
    multiply_tiles<T, 1, First, Last>(tile, x, out);
    i_store(products, i_add(i_load(products), out[0][0]));
}

// out = the products of N tiles and both halves of activations. If only some of the rows have low halves, those rows
// are computed one at a time.
template <class T, int First, int Last, int N, int R>
LANES void multiply_halves(const std::uint8_t* tiles, const GroupRows<R>& rows, I (&out)[N][R]) {
    constexpr bool at_once = 2 * R <= kShortVectors;
    const std::int8_t *high[R], *low[R];
    unroll<R>(EACH(r) { high[r] = rows.a[r]->high, low[r] = rows.a[r]->low; });
    if constexpr (at_once) {
        if (rows.num_low) {
            const std::int8_t* both[2 * R];
            unroll<R>(EACH(r) { both[r] = high[r], both[R + r] = low[r]; });
            return multiply_tiles<T, 1, First, Last>(tiles, both, out);
        }
    }
    multiply_tiles<T, 1 << kLowBits, First, Last>(tiles, high, out);
    if constexpr (!at_once) {
        static_assert(N == 1);
        if (!rows.num_low) return;
        alignas(kLine) std::int32_t products[R][kTileRows];
        unroll<R>(EACH(r) { i_store(products[r], out[0][r]); });
        if (rows.num_low == R) {
            multiply_tiles<T, 1, First, Last>(tiles, low, out);
            unroll<R>(EACH(r) { out[0][r] = i_add(i_load(products[r]), out[0][r]); });
        } else {
            for (int r = 0; r < R; r++)
                if (rows.a[r]->has_low) add_low<T, First, Last>(tiles, low[r], products[r]);
            unroll<R>(EACH(r) { out[0][r] = i_load(products[r]); });
        }
    }
}

// Adds the scaled products of quads [First, Last) of N tiles to `sums`. The scales are those of half group Half.
template <class T, int First, int Last, int Half, int N, int R>
LANES void add_tiles(const std::uint8_t* tiles, const TileScales<T>* scales, const std::int32_t (&zeros)[R],
                     const GroupRows<R>& rows, const Sums<R>& sums, int tile) {
    I out[N][R];
    if constexpr (kTakesWords<T>) {
        static_assert(N == 1);
        unroll<R>(EACH(r) { out[0][r] = i_set(0); });
        add_words<T, First, Last>(tiles, rows.words, out[0]);
    } else {
        multiply_halves<T, First, Last>(tiles, rows, out);
    }
    unroll<R>(EACH(r) {
        const QuantisedGroup* a = rows.a[r];
        unroll<N>(EACH(t) {
            float* at = sums.of(r, tile + t);
            if constexpr (T::zero != 0) out[t][r] = i_add(out[t][r], i_set(zeros[r]));
            F sum = add_product(out[t][r], scales[t].scale[Half], f_set(a->scale), f_load(at));
            if constexpr (T::minima && !T::halves) sum = add_minimum<T, 0>(scales[t], a, sum);
            f_store(at, sum);
        });
    });
}

// With one row the registers suffice for both tiles, and the activations are loaded once for both.
template <class T, int R>
constexpr int kTilesAtOnce = R == 1 && !kTakesWords<T> ? 2 : 1;

template <class T, int First, int Last, int Half, int R>
LANES void add_quads(const std::uint8_t* codes, const TileScales<T> (&scales)[2], const GroupRows<R>& rows,
                     const Sums<R>& sums) {
    std::int32_t zeros[R];
    for (int r = 0; r < R; r++) {
        zeros[r] = 0;
        for (int half = 0; half < 2; half++)
            if (Last - First == kQuads || half == Half)
                zeros[r] -= T::zero * ((rows.a[r]->high_sum[half] << kLowBits) + rows.a[r]->low_sum[half]);
    }
    constexpr int n = kTilesAtOnce<T, R>;
    unroll<2 / n>(EACH(i) {
        constexpr int t = i * n;
        add_tiles<T, First, Last, Half, n>(codes + t * kLine * T::tile_lines, scales + t, zeros, rows, sums, t);
    });
}

template <class T, int R>
LANES void add_group(const std::uint8_t* span, const std::uint8_t* group, const QuantisedGroup* const* a,
                     Sums<R>& sums) {
    const std::uint8_t* codes = group + kLine * T::group_lines;
    const TileScales<T> scales[2] = {{span, group, 0}, {span, group, 1}};
    GroupRows<R> rows;
    rows.a = a;
    rows.num_low = 0;
    for (int r = 0; r < R; r++) {
        if constexpr (kTakesWords<T>)
            w_store(a[r]->high, a[r]->low, rows.words[r]);
        else
            rows.num_low += a[r]->has_low;
    }
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
