// The forward and backward passes of training's layers on a team of threads, in float32. Only the factors of products
// may be rounded to bfloat16.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "arrays.h"
#include "product.h"

namespace freedive {

// A layer of gated experts: x [tokens, hidden]; shares and choices [tokens, chosen]; gate and up [experts, dim,
// hidden]; down [experts, hidden, dim].
struct MixtureInput {
    FloatArray x, shares;
    IntArray choices;
    FloatArray gate, up, down;
};
struct MixtureGradients {
    MutableFloatArray x, shares, gate, up, down;
};

// Causal attention: q, k and v [tokens, heads, dim]. Sequences lie end to end: `begins` [sequences + 1] holds the first
// row of each and the end of the last. With rotary embedding `turning` [tokens, turned] is the last part of every
// head's key, so k is [tokens, heads, dim - turned]; `angles` [2, tokens, turned / 2] holds cosines, then sines. A
// rotated pair is two neighbours, or one number from each half.
struct AttentionInput {
    FloatArray q, k, v, turning, angles;
    bool neighbours;
    IntArray begins;
    float scale;
};
struct AttentionGradients {
    MutableFloatArray q, k, v, turning;
};

// Weights with the arrays of an optimizer, all of equal size; `squares` may be empty. Throws std::invalid_argument for
// arrays that do not fit each other.
std::vector<Updated> updated_weights(std::span<const MutableFloatArray> weights,
                                     std::span<const MutableFloatArray> gradients,
                                     std::span<const MutableFloatArray> momenta,
                                     std::span<const MutableFloatArray> squares, std::span<const float> keeps,
                                     std::span<const float> rates);

// One Newton-Schulz iteration: x -> (a + b x x^T + c (x x^T)^2) x. Before the first, x is divided by (its norm + eps).
struct Polynomial {
    float a, b, c, eps;
};

// The memory and products of one thread.
struct Own : Multiplier {
    using Multiplier::Multiplier;
    Arena arena;
};

// Every operation throws std::invalid_argument before it starts if shapes, indices or sequences do not fit.
class Training {
  public:
    Training(const TrainKernels& kernels, const FloatProducts& products, int num_threads)
        : kernels_(kernels), products_(products), team_(num_threads) {
        for (int i = 0; i < num_threads; i++) own_.emplace_back(products);
    }

    // For each weight [out, in]: y [rows, out] = x [rows, in] weight^T.
    void linears(const FloatArray& x, std::span<const FloatArray> weights, std::span<const MutableFloatArray> ys);
    // d_x and each of d_weights may be missing.
    void linears_backward(const FloatArray& x, std::span<const FloatArray> weights, std::span<const FloatArray> d_ys,
                          const MutableFloatArray& d_x, std::span<const MutableFloatArray> d_weights);

    // y [tokens, hidden]. gate_up [tokens * chosen, 2 * kept_width(dim)] is kept for the backward pass.
    std::ptrdiff_t kept_width(int dim) const;
    void mixture(const MixtureInput& input, const MutableFloatArray& gate_up, const MutableFloatArray& y);
    void mixture_backward(const MixtureInput& input, const FloatArray& gate_up, const FloatArray& d_y,
                          const MixtureGradients& gradients);

    // out [tokens, heads, dim]. `log_sums` [tokens * heads] are kept for the backward pass.
    void attention(const AttentionInput& input, const MutableFloatArray& out, const MutableFloatArray& log_sums);
    void attention_backward(const AttentionInput& input, const FloatArray& out, const FloatArray& log_sums,
                            const FloatArray& d_out, const AttentionGradients& gradients);

    // Returns the sum of the losses of `targets` [rows] times their `weights` [rows], in nats; the logits are x
    // [rows, hidden] head^T [hidden, vocab]. d_x and d_head are its gradients.
    double cross_entropy(const FloatArray& x, const FloatArray& head, const IntArray& targets,
                         const FloatArray& weights, const MutableFloatArray& d_x, const MutableFloatArray& d_head);

    // x and y [rows, dim], weight [dim].
    void rms_norm(const FloatArray& x, const FloatArray& weight, float eps, const MutableFloatArray& y);
    void rms_norm_backward(const FloatArray& x, const FloatArray& weight, float eps, const FloatArray& d_y,
                           const MutableFloatArray& d_x, const MutableFloatArray& d_weight);

    // Replaces each matrix of the stacks [count, rows, columns] by the result of `turns` Newton-Schulz iterations.
    void orthogonalise(std::span<const MutableFloatArray> stacks, Polynomial polynomial, int turns);

    // The updates of TrainKernels, for all numbers of every weight.
    void adamw(std::span<const Updated> all, AdamStep step);
    void nesterov(std::span<const Updated> all, float beta, float shrink);
    void apply_update(std::span<const Updated> all);

  private:
    const TrainKernels& kernels_;
    const FloatProducts& products_;
    Team team_;
    Arena shared_;
    std::vector<Own> own_;  // by thread
    std::mutex one_at_a_time_;
};

}  // namespace freedive
