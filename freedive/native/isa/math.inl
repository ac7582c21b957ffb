// Sums over lanes and functions of vectors; included in the namespace of a level.

LANES float sum_lanes(F v) {
    float x[16];
    f_store(x, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}
// out[i] += the sum of the lanes of x[i]. Levels with a faster way overload this function.
template <class Lanes>
LANES void f_add_lane_sums(const Lanes (&x)[8], float* out) {
    for (int i = 0; i < 8; i++) out[i] += sum_lanes(x[i]);
}
// exp to about 1 ulp (Cephes expf); exactly 0 below -87.
LANES F f_exp(F x) {
    const F clamped = f_max(f_min(x, f_set(88.0f)), f_set(-87.0f));
    const F n = f_round(f_mul(clamped, f_set(1.44269504088896341f)));
    F r = f_fma(n, f_set(-0.693359375f), clamped);
    r = f_fma(n, f_set(2.12194440e-4f), r);
    F p = f_set(1.9875691500e-4f);
    constexpr float rest[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    for (const float c : rest) p = f_fma(p, r, f_set(c));
    p = f_add(f_fma(p, f_mul(r, r), r), f_set(1.0f));
    return f_keep_above(x, f_set(-87.0f), f_mul(p, f_power_of_two(i_from_float(n))));
}
LANES F f_sigmoid(F x) { return f_div(f_set(1.0f), f_add(f_set(1.0f), f_exp(f_sub(f_set(0.0f), x)))); }
LANES F f_tanh(F x) { return f_sub(f_set(1.0f), f_div(f_set(2.0f), f_add(f_exp(f_add(x, x)), f_set(1.0f)))); }
LANES F f_softcap(F x, float cap) { return f_mul(f_tanh(f_div(x, f_set(cap))), f_set(cap)); }
