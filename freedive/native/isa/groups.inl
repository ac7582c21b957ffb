// Groups of a panel: loads their codes and scales, and applies the scales to integer products. Included by
// dot_wide.inl, dot_short.inl and amx.cpp, which compute the products.

template <int I>
struct Index {
    constexpr operator int() const { return I; }
};
#define EACH(i) [&](auto i) __attribute__((always_inline))
// Calls body(i) for each i < N, with i a compile-time constant. Where F is a pair of registers, GCC unrolls ordinary
// loops too late and keeps arrays of F in memory.
template <int N, int I = 0, class Body>
LANES void unroll(Body&& body) {
    if constexpr (I < N) {
        body(Index<I>());
        unroll<N, I + 1>(body);
    }
}

LANES std::int32_t four_bytes(const std::int8_t* p) {
    std::int32_t v;
    __builtin_memcpy(&v, p, 4);
    return v;
}

LANES void prefetch_panel(const std::uint8_t* line) { __builtin_prefetch(line + kPrefetchBytes, 0, kPrefetchLocality); }

// Loads the bits that a bit plane of Width bits has of the codes of a quad, shifted to bit To.
template <int Width, int Quad, int To = 0>
LANES C load_plane(const std::uint8_t* lines) {
    constexpr int quads = 8 / Width;  // the number of quads in a line
    const C line = c_load(lines + Quad / quads * kLine);
    if constexpr (Width == 8) return line;
    return c_bits<Width*(Quad % quads) - To>(line, ((1 << Width) - 1) << To);
}
template <class T, int Quad>
LANES C load_codes(const std::uint8_t* tile) {
    C c = load_plane<T::low_bits, Quad>(tile);
    if constexpr (T::high_bits > 0)
        c = c_or(c, load_plane<T::high_bits, Quad, T::low_bits>(tile + T::low_bits * kLine));
    if constexpr (T::code_bits != T::bits) c = c_lookup(c, T::table);
    return c;
}

// Scales and minima of one tile of a group. Element [1] is set only if T::halves; it is that of the second half group.
template <class T>
struct TileScales {
    F scale[2], minimum[2];
    TileScales() = default;
    LANES TileScales(const std::uint8_t* span, const std::uint8_t* group, int tile) {
        const int at = tile * kTileRows;
        const auto* first = (const std::uint16_t*)span + at;
        const auto* second = (const std::uint16_t*)(span + kLine) + at;
        const std::uint8_t *low = group + at, *high = group + kPanelRows + at;
        const auto in_units = [](F super_scale) {
            return T::unit == 1 ? super_scale : f_mul(super_scale, f_set(T::unit));
        };
        if constexpr (T::scales == Scales::Bf16) {
            scale[0] = f_load_bf16(first);
        } else if constexpr (T::scales == Scales::F8Halves) {
            const F d = in_units(f_load((const float*)span + at));
            scale[0] = f_mul(d, f_load_f8(low));
            scale[1] = f_mul(d, f_load_f8(high));
        } else if constexpr (!T::super) {
            scale[0] = f_load_half(first);
            if constexpr (T::scales == Scales::HalfMin) minimum[0] = f_load_half(second);
            if constexpr (T::scales == Scales::HalfZero)
                minimum[0] = f_sub(f_set(0.0f), f_mul(scale[0], f_load_half(second)));
        } else {
            const F d = in_units(f_load_half(first));
            if constexpr (T::scales == Scales::SuperMin) {
                scale[0] = f_mul(d, f_from_int(i_from_codes(low)));
                minimum[0] = f_mul(in_units(f_load_half(second)), f_from_int(i_from_codes(high)));
            } else if constexpr (T::scales == Scales::SuperHalves) {
                scale[0] = f_mul(d, f_from_int(i_from_signed((const std::int8_t*)low)));
                scale[1] = f_mul(d, f_from_int(i_from_signed((const std::int8_t*)high)));
            } else {
                const F m = in_units(f_load_half(second));
                const I both[2] = {i_from_codes(low), i_from_codes(high)};
                for (int half = 0; half < 2; half++) {
                    scale[half] = f_mul(d, f_from_int(i_and(both[half], i_set(15))));
                    minimum[half] = f_mul(m, f_from_int(i_shift_right<4>(both[half])));
                }
            }
        }
    }
};

// The contribution of the zero point to products with activations whose sums in the two half groups are `sums`: -zero
// times the sum of the activations of half group Half if T::halves, else of all activations.
template <class T>
LANES std::int32_t zero_product(const std::int32_t (&sums)[2], int half) {
    return -T::zero * (T::halves ? sums[half] : sums[0] + sums[1]);
}

// Returns sum + product * scale * activation_scale. `product` is the integer product, with the zero point subtracted.
LANES F add_product(I product, F scale, F activation_scale, F sum) {
    return f_fma(f_from_int(product), f_mul(scale, activation_scale), sum);
}
// Returns sum + minimum * (the sum of the activations of the group, or of half group Half if T::halves).
template <class T, int Half>
LANES F add_minimum(const TileScales<T>& scales, const QuantisedGroup* a, F sum) {
    const float* sums = a->scaled_sum;
    return f_fma(scales.minimum[Half], f_set(T::halves ? sums[Half] : sums[0] + sums[1]), sum);
}

// Adds the scaled products of both tiles and R rows. The scale of the activations is multiplied by `unit`.
template <class T, int R, int Half>
LANES void add_products(const I (&products)[2][R], float unit, const TileScales<T> (&scales)[2],
                        const QuantisedGroup* const* a, F (&sum)[2][R]) {
    for (int r = 0; r < R; r++) {
        const F d = f_set(a[r]->scale * unit);
        for (int t = 0; t < 2; t++) sum[t][r] = add_product(products[t][r], scales[t].scale[Half], d, sum[t][r]);
    }
}
template <class T, int R>
LANES void add_minima(const TileScales<T> (&scales)[2], const QuantisedGroup* const* a, F (&sum)[2][R]) {
    for (int r = 0; r < R; r++)
        for (int t = 0; t < 2; t++) {
            sum[t][r] = add_minimum<T, 0>(scales[t], a[r], sum[t][r]);
            if constexpr (T::halves) sum[t][r] = add_minimum<T, 1>(scales[t], a[r], sum[t][r]);
        }
}
