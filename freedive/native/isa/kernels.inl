// The kernels, written once for vectors of 16 lanes. Each level includes this file in its own namespace. The result of
// a row does not depend on the other rows of the batch, bit for bit: integer sums in a group are exact, and float sums
// run over groups (or inputs, or keys) in order. Standard library templates are not used: the linker could share their
// instances, compiled for a higher level, with code that must run on older processors.

#include "math.inl"

#include "softmax.inl"  // uses math.inl

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
                    {},
                    nullptr,
                    add_transposed,
                    quantise,
                    rms_norm,
                    glu,
                    softcap,
                    weigh,
                    peaks,
                    to_half,
                    from_half,
                    {attend<float>, attend<std::uint16_t>, attend_int8},
                    {attend_latent<float>, attend_latent<std::uint16_t>},
                    nullptr,
                    {},
                    nullptr,
                    fold,
                    delta_rule,
                    decays,
                    train_kernels,
                    {products<Precision::Float32>, products<Precision::Bfloat16>}};
    fill_linear(kernels);
    return kernels;
}
