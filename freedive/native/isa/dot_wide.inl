// Products of groups for levels with an instruction that adds four products to a 32-bit accumulator.

#include "groups.inl"

// Adds the products of quads [First, Last) of both tiles and one half of the activations, high or low. Both tiles use
// the same broadcast of each quad of activations.
template <class T, int First, int Last, int R>
LANES void dot_quads(const std::uint8_t* tile0, const std::uint8_t* tile1, const std::int8_t* const* x,
                     I (&acc)[2][R]) {
    if constexpr (First < Last) {
        const C codes0 = load_codes<T, First>(tile0), codes1 = load_codes<T, First>(tile1);
        for (int r = 0; r < R; r++) {
            const std::int32_t quad = four_bytes(x[r] + 4 * First);
            acc[0][r] = i_dot<T::code_bits>(acc[0][r], codes0, quad);
            acc[1][r] = i_dot<T::code_bits>(acc[1][r], codes1, quad);
        }
        dot_quads<T, First + 1, Last, R>(tile0, tile1, x, acc);
    }
}

// Adds the scaled products of quads [First, Last) of a group. The scales are those of half group Half.
template <class T, int R, int First, int Last, int Half>
LANES void add_quads(const std::uint8_t* codes, const TileScales<T> (&scales)[2], const QuantisedGroup* const* a,
                     F (&sum)[2][R]) {
    const std::uint8_t *tile0 = codes, *tile1 = codes + kLine * T::tile_lines;
    const std::int8_t *high[R], *low[R];
    I acc[2][R];
    bool any_low = false;
    for (int r = 0; r < R; r++) {
        high[r] = a[r]->high;
        low[r] = a[r]->low;
        any_low |= a[r]->has_low;
        acc[0][r] = acc[1][r] = i_set(zero_product<T>(a[r]->high_sum, Half));
    }
    if constexpr (R <= kRowsAtOnce) {
        if (any_low) {  // twice as many chains of additions, half as long, and codes are loaded once
            const std::int8_t* both[2 * R];
            I halves[2][2 * R];
            for (int r = 0; r < R; r++) {
                both[r] = high[r];
                both[R + r] = low[r];
                for (int t = 0; t < 2; t++) {
                    halves[t][r] = acc[t][r];
                    halves[t][R + r] = i_set(zero_product<T>(a[r]->low_sum, Half));
                }
            }
            dot_quads<T, First, Last, 2 * R>(tile0, tile1, both, halves);
            for (int r = 0; r < R; r++)
                for (int t = 0; t < 2; t++) acc[t][r] = i_add(i_shift_left<kLowBits>(halves[t][r]), halves[t][R + r]);
            return add_products<T, R, Half>(acc, 1, scales, a, sum);
        }
    }
    dot_quads<T, First, Last, R>(tile0, tile1, high, acc);
    // Without low halves the scale is multiplied by this power of two, which is exact, instead of shifting the
    // products.
    float unit = 1 << kLowBits;
    if (any_low) {
        // With several rows the codes are loaded again. Codes kept in registers until here would spill accumulators.
        if constexpr (R > 1) asm("" : "+r"(tile0), "+r"(tile1));
        for (int r = 0; r < R; r++) {
            const I zero = i_set(zero_product<T>(a[r]->low_sum, Half));
            for (int t = 0; t < 2; t++) acc[t][r] = i_add(i_shift_left<kLowBits>(acc[t][r]), zero);
        }
        dot_quads<T, First, Last, R>(tile0, tile1, low, acc);
        unit = 1;
    }
    add_products<T, R, Half>(acc, unit, scales, a, sum);
}

// The accumulators of a panel times R rows. Rows of `out` are `stride` elements apart.
template <int R>
struct Sums {
    F at[2][R];
    float* out;
    int stride;
    LANES Sums(float* out, int stride, bool from_zero) : out(out), stride(stride) {
        for (int r = 0; r < R; r++)
            for (int t = 0; t < 2; t++) at[t][r] = from_zero ? f_set(0.0f) : f_load(out + r * stride + t * kTileRows);
    }
    LANES void store() {
        for (int r = 0; r < R; r++)
            for (int t = 0; t < 2; t++) f_store(out + r * stride + t * kTileRows, at[t][r]);
    }
};

template <class T, int R>
LANES void add_group(const std::uint8_t* span, const std::uint8_t* group, const QuantisedGroup* const* a,
                     Sums<R>& sums) {
    auto& sum = sums.at;
    const std::uint8_t* codes = group + kLine * T::group_lines;
    const TileScales<T> scales[2] = {{span, group, 0}, {span, group, 1}};
    if constexpr (T::halves) {
        add_quads<T, R, 0, kQuads / 2, 0>(codes, scales, a, sum);
        add_quads<T, R, kQuads / 2, kQuads, 1>(codes, scales, a, sum);
    } else {
        add_quads<T, R, 0, kQuads, 0>(codes, scales, a, sum);
    }
    if constexpr (T::minima) add_minima<T, R>(scales, a, sum);
}
