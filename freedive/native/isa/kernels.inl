// The kernels, written once for vectors of 16 lanes. Each level includes this file in its own namespace. The result of
// a row does not depend on the other rows of the batch, bit for bit: integer sums in a group are exact, and float sums
// run over groups (or inputs, or keys) in order. Standard library templates are not used: the linker could share their
// instances, compiled for a higher level, with code that must run on older processors.

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

#include "attention.inl"
#include "linear.inl"
#include "rows.inl"

#include "attention_int8.inl"  // uses attention.inl, linear.inl and rows.inl

#include "delta.inl"

#include "bf16.inl"

#include "products.inl"  // uses bf16.inl

#include "gradients.inl"  // uses products.inl

#include "updates.inl"

constexpr TrainKernels train_kernels{
    weighted_swiglu, weighted_swiglu_gradient, softmax, softmax_gradient, dot,         concat_rope, split_rope,
    rms_norm,        rms_norm_gradient,        adamw,   nesterov,         apply_update};

template <int Fmt = 0>
constexpr void fill_linear(Kernels& kernels) {
    kernels.linear[Fmt] = linear<Format(Fmt)>;
    if constexpr (Fmt + 1 < kNumFormats) fill_linear<Fmt + 1>(kernels);
}

constexpr Kernels table(const char* name) {
    Kernels kernels{name,
                    {},
                    add_transposed,
                    quantise,
                    rms_norm,
                    glu,
                    softcap,
                    weigh,
                    to_half,
                    from_half,
                    {attend<float>, attend<std::uint16_t>, attend_int8},
                    {attend_latent<float>, attend_latent<std::uint16_t>},
                    fold,
                    delta_rule,
                    decays,
                    train_kernels,
                    {products<Precision::Float32>, products<Precision::Bfloat16>}};
    fill_linear(kernels);
    return kernels;
}
