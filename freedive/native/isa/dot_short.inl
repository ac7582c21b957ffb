// Products of groups in sums of 16 bits, each emptied into one of 32 before it can overflow; for levels whose
// instructions add products in no other way. Emptying takes a factor for free: 256 for high halves of activations, 16
// for the upper half of codes of eight bits.

#include "groups.inl"

// Codes of eight bits are taken as two planes of four: of the whole byte, a pair of products would not fit.
template <class T>
constexpr int kPlanes = T::code_bits == 8 ? 2 : 1;

template <class T>
constexpr int max_code() {
    if constexpr (kPlanes<T> == 2) return 15;
    int most = T::code_bits == T::bits ? (1 << T::bits) - 1 : 0;
    if constexpr (T::code_bits != T::bits)
        for (const int code : T::table) most = code > most ? code : most;
    return most;
}
// Quads that a sum has room for: a lane adds two products of each.
template <class T>
constexpr int kShortQuads = 32767 / (2 * max_code<T>() * 127);

template <class T, int Plane>
struct NibbleTable {
    std::uint8_t nibbles[16];
    constexpr NibbleTable() : nibbles() {
        for (int i = 0; i < 16; i++) nibbles[i] = T::table[i] >> 4 * Plane & 15;
    }
};
template <class T, int Plane>
constexpr NibbleTable<T, Plane> kNibbles;

template <class T, int Plane, int Quad>
LANES C load_short_codes(const std::uint8_t* tile) {
    if constexpr (kPlanes<T> == 1)
        return load_codes<T, Quad>(tile);
    else if constexpr (T::bits == 8)
        return c_bits<4 * Plane>(c_load(tile + Quad * kLine), 15);
    else
        return c_lookup(load_plane<T::bits, Quad>(tile), kNibbles<T, Plane>.nibbles);
}

template <class T, int Plane, int First, int Last, int V>
LANES void dot_short(const std::uint8_t* tile, const std::int8_t* const (&x)[V], S (&acc)[V]) {
    if constexpr (First < Last) {
        const C codes = load_short_codes<T, Plane, First>(tile);
        unroll<V>(EACH(v) { acc[v] = s_dot(acc[v], codes, four_bytes(x[v] + 4 * First)); });
        dot_short<T, Plane, First + 1, Last, V>(tile, x, acc);
    }
}

// out = products of quads [First, Last) of a tile with vectors of codes, times `Unit`, plus what is there if `Adds`. Of
// two vectors for each row of `out` the first are the high halves.
template <class T, int Unit, bool Adds, int Plane, int First, int Last, int V, int R>
LANES void multiply_plane(const std::uint8_t* tile, const std::int8_t* const (&x)[V], I (&out)[R]) {
    constexpr int end = First + kShortQuads<T> < Last ? First + kShortQuads<T> : Last;
    constexpr int first_unit = V == R ? Unit : Unit << kLowBits;
    S acc[V];
    unroll<V>(EACH(v) { acc[v] = s_zero(); });
    dot_short<T, Plane, First, end, V>(tile, x, acc);
    unroll<R>(EACH(r) {
        I total = s_total<first_unit>(acc[r]);
        if constexpr (V > R) total = i_add(total, s_total<Unit>(acc[R + r]));
        out[r] = Adds ? i_add(out[r], total) : total;
    });
    if constexpr (end < Last) multiply_plane<T, Unit, true, Plane, end, Last>(tile, x, out);
}
template <class T, int Unit, int First, int Last, int V, int R>
LANES void multiply_tile(const std::uint8_t* tile, const std::int8_t* const (&x)[V], I (&out)[R]) {
    multiply_plane<T, Unit, false, 0, First, Last>(tile, x, out);
    if constexpr (kPlanes<T> == 2) multiply_plane<T, Unit << 4, true, 1, First, Last>(tile, x, out);
}

constexpr int kShortVectors = 6;  // whose sums fit in the registers

// Adds the products of a tile with low halves to those with high ones.
template <class T, int First, int Last>
__attribute__((noinline)) void add_low(const std::uint8_t* tile, const std::int8_t* low, std::int32_t* products) {
    const std::int8_t* const x[1] = {low};
    I out[1];
    multiply_tile<T, 1, First, Last>(tile, x, out);
    i_store(products, i_add(i_load(products), out[0]));
}

// Adds the products of quads [First, Last) of a tile, whose scales are those of half group `Half`. Where many rows
// share the codes but few have low halves, these are done one by one.
template <class T, int R, int First, int Last, int Half>
LANES void add_tile(const std::uint8_t* tile, const TileScales<T>& scales, const QuantisedGroup* const* a, int num_low,
                    const std::int32_t (&zeros)[R], float* sums, int stride) {
    const auto finish = [&](auto r, I product) __attribute__((always_inline)) {
        if constexpr (T::zero != 0) product = i_add(product, i_set(zeros[r]));
        F sum = add_product(product, scales.scale[Half], f_set(a[r]->scale), f_load(sums + r * stride));
        if constexpr (T::minima && !T::halves) sum = add_minimum<T, 0>(scales, a[r], sum);
        f_store(sums + r * stride, sum);
    };
    constexpr bool at_once = 2 * R <= kShortVectors;
    I out[R];
    if constexpr (at_once) {
        if (num_low) {
            const std::int8_t* both[2 * R];
            unroll<R>(EACH(r) { both[r] = a[r]->high, both[R + r] = a[r]->low; });
            multiply_tile<T, 1, First, Last>(tile, both, out);
            unroll<R>(EACH(r) { finish(r, out[r]); });
            return;
        }
    }
    const std::int8_t* x[R];
    unroll<R>(EACH(r) { x[r] = a[r]->high; });
    multiply_tile<T, 1 << kLowBits, First, Last>(tile, x, out);
    if constexpr (!at_once) {
        if (num_low) {
            alignas(kLine) std::int32_t products[R][kTileRows];
            unroll<R>(EACH(r) { i_store(products[r], out[r]); });
            if (num_low == R) {
                unroll<R>(EACH(r) { x[r] = a[r]->low; });
                multiply_tile<T, 1, First, Last>(tile, x, out);
                unroll<R>(EACH(r) { finish(r, i_add(i_load(products[r]), out[r])); });
                return;
            }
            for (int r = 0; r < R; r++)
                if (a[r]->has_low) add_low<T, First, Last>(tile, a[r]->low, products[r]);
            unroll<R>(EACH(r) { finish(r, i_load(products[r])); });
            return;
        }
    }
    unroll<R>(EACH(r) { finish(r, out[r]); });
}

template <class T, int R, int First, int Last, int Half>
LANES void add_quads(const std::uint8_t* codes, const TileScales<T> (&scales)[2], const QuantisedGroup* const* a,
                     int num_low, float* sums, int stride) {
    std::int32_t zeros[R];
    for (int r = 0; r < R; r++) {
        zeros[r] = 0;
        for (int half = 0; half < 2; half++)
            if (Last - First == kQuads || half == Half)
                zeros[r] -= T::zero * ((a[r]->high_sum[half] << kLowBits) + a[r]->low_sum[half]);
    }
    unroll<2>(EACH(t) {
        const std::uint8_t* tile = codes + t * kLine * T::tile_lines;
        add_tile<T, R, First, Last, Half>(tile, scales[t], a, num_low, zeros, sums + t * kTileRows, stride);
    });
}

// Of a panel times R rows: they stay in `out`, since the registers are full of sums of products.
template <int R>
struct Sums {
    float* at;
    int stride;
    LANES Sums(float* out, int stride, bool from_zero) : at(out), stride(stride) {
        if (from_zero)
            unroll<R>(EACH(r) { unroll<2>(EACH(t) { f_store(at + r * stride + t * kTileRows, f_set(0.0f)); }); });
    }
    LANES void store() {}
};

template <class T, int R>
LANES void add_group(const std::uint8_t* span, const std::uint8_t* group, const QuantisedGroup* const* a,
                     Sums<R>& sums) {
    const std::uint8_t* codes = group + kLine * T::group_lines;
    int num_low = 0;
    for (int r = 0; r < R; r++) num_low += a[r]->has_low;
    const TileScales<T> scales[2] = {{span, group, 0}, {span, group, 1}};
    if constexpr (T::halves) {
        add_quads<T, R, 0, kQuads / 2, 0>(codes, scales, a, num_low, sums.at, sums.stride);
        add_quads<T, R, kQuads / 2, kQuads, 1>(codes, scales, a, num_low, sums.at, sums.stride);
    } else {
        add_quads<T, R, 0, kQuads, 0>(codes, scales, a, num_low, sums.at, sums.stride);
    }
    if constexpr (T::minima && T::halves)
        unroll<R>(EACH(r) {
            unroll<2>(EACH(t) {
                float* sum = sums.at + r * sums.stride + t * kTileRows;
                f_store(sum, add_minimum<T, 1>(scales[t], a[r], add_minimum<T, 0>(scales[t], a[r], f_load(sum))));
            });
        });
}
