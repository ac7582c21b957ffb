// Groups of a panel: their codes and scales, and what is made of integer products with them. Included by what computes
// those products, kernels.inl and amx.cpp.

constexpr int kPrefetchBytes = 4096;  // how far ahead of a streamed panel to ask for lines

template <int Width, int Quad>
LANES C load_plane(const std::uint8_t* lines) {
    constexpr int quads = 8 / Width;  // in a line
    const C line = c_load(lines + Quad / quads * kLine);
    if constexpr (Width == 8) return line;
    return c_bits<Width*(Quad % quads)>(line, (1 << Width) - 1);
}
template <class T, int Quad>
LANES C load_codes(const std::uint8_t* tile) {
    C c = load_plane<T::low_bits, Quad>(tile);
    if constexpr (T::high_bits > 0)
        c = c_or(c, c_shift_left<T::low_bits>(load_plane<T::high_bits, Quad>(tile + T::low_bits * kLine)));
    if constexpr (T::code_bits != T::bits) c = c_lookup(c, T::table);
    return c;
}

// Scales and minima of one tile of a group; [1] are the second half group's where halves differ.
template <class T>
struct TileScales {
    F scale[2], minimum[2];
    TileScales() = default;
    LANES TileScales(const std::uint8_t* span, const std::uint8_t* group, int tile) {
        const int at = tile * kTileRows;
        const auto* first = (const std::uint16_t*)span + at;
        const auto* second = (const std::uint16_t*)(span + kLine) + at;
        const std::uint8_t *low = group + at, *high = group + kPanelRows + at;
        if constexpr (T::scales == Scales::Bf16) {
            scale[0] = f_load_bf16(first);
        } else if constexpr (!T::super) {
            scale[0] = f_load_half(first);
            if constexpr (T::scales == Scales::HalfMin) minimum[0] = f_load_half(second);
            if constexpr (T::scales == Scales::HalfZero)
                minimum[0] = f_sub(f_set(0.0f), f_mul(scale[0], f_load_half(second)));
        } else {
            const F d = f_load_half(first);
            if constexpr (T::scales == Scales::SuperMin) {
                scale[0] = f_mul(d, f_from_int(i_from_codes(low)));
                minimum[0] = f_mul(f_load_half(second), f_from_int(i_from_codes(high)));
            } else if constexpr (T::scales == Scales::SuperHalves) {
                scale[0] = f_mul(d, f_from_int(i_from_signed((const std::int8_t*)low)));
                scale[1] = f_mul(d, f_from_int(i_from_signed((const std::int8_t*)high)));
            } else {
                const F m = f_load_half(second);
                const I both[2] = {i_from_codes(low), i_from_codes(high)};
                for (int half = 0; half < 2; half++) {
                    scale[half] = f_mul(d, f_from_int(i_and(both[half], i_set(15))));
                    minimum[half] = f_mul(m, f_from_int(i_shift_right<4>(both[half])));
                }
            }
        }
    }
};

// Adds products of activations with codes less their zero points, which count `unit` times the activations' scale.
template <class T, int R, int Half>
LANES void add_products(const I (&products)[2][R], float unit, const TileScales<T> (&scales)[2],
                        const QuantisedGroup* const* a, F (&sum)[2][R]) {
    for (int r = 0; r < R; r++) {
        const F d = f_set(a[r]->scale * unit);
        for (int t = 0; t < 2; t++)
            sum[t][r] = f_fma(f_from_int(products[t][r]), f_mul(scales[t].scale[Half], d), sum[t][r]);
    }
}
// Adds the minima of a group times its activations.
template <class T, int R>
LANES void add_minima(const TileScales<T> (&scales)[2], const QuantisedGroup* const* a, F (&sum)[2][R]) {
    for (int r = 0; r < R; r++)
        for (int half = 0; half < (T::halves ? 2 : 1); half++) {
            const float* sums = a[r]->scaled_sum;
            const F d = f_set(T::halves ? sums[half] : sums[0] + sums[1]);
            for (int t = 0; t < 2; t++) sum[t][r] = f_fma(scales[t].minimum[half], d, sum[t][r]);
        }
}
