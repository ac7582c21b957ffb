// The forward and backward passes of training's layers, on a team of threads. All is float32 but the factors of
// products, which may be rounded.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "product.h"

namespace freedive {

// Linear layers of the same x [rows, in], for each of which y [rows, out] = x weight^T.
struct LinearShape {
    int rows, in;
};
struct Linear {
    const float* weight;
    int out;
    float* y;
};
struct LinearGradient {
    const float* weight;
    int out;
    const float* d_y;
    float* d_weight;  // may be none
};

// Gated experts: each of `tokens` goes to `chosen` of them. Shapes of weights: [experts, dim, hidden], but of down
// [experts, hidden, dim].
struct MixtureShape {
    int tokens, chosen, experts, hidden, dim;
};
struct MixtureWeights {
    const float *gate, *up, *down;
};
struct MixtureGradients {
    float *x, *shares, *gate, *up, *down;
};

// Rotary embedding of the last `dim` numbers of queries and keys, of which keys have them in common: angles are cosines
// [tokens, dim / 2], then sines. Neighbours are turned together, or halves.
struct Rotation {
    const float* angles = nullptr;
    std::ptrdiff_t tokens = 0;
    int dim = 0;
    bool neighbours = false;
};

// Causal attention: rows [tokens, heads * dim] of q, k and v, whose heads have one width. Sequences lie end to end;
// begins [sequences + 1] are their first rows, and the last one's end. With a rotation a head's keys lack their last
// part, which is `turning` [tokens, rotation.dim] for all heads.
struct AttentionShape {
    const std::int64_t* begins;
    int sequences, heads, dim;
    float scale;
    Rotation rotation;
    int length(int sequence) const { return int(begins[sequence + 1] - begins[sequence]); }
    int key_dim() const { return dim - rotation.dim; }
    std::ptrdiff_t tokens() const { return begins[sequences]; }
};
struct AttentionInput {
    const float *q, *k, *v, *turning;
};
struct AttentionGradients {
    float *q, *k, *v, *turning;
};

// Logits [rows, vocab] = x [rows, hidden] head^T.
struct CrossEntropyShape {
    int rows, hidden, vocab;
};

struct NormShape {
    int rows, dim;
    float eps;
};

// `count` matrices [rows, columns], one after the other.
struct Matrices {
    float* data;
    int count, rows, columns;
};
// x -> (a + b x x^T + c (x x^T)^2) x, after x has been divided by its norm, plus eps.
struct Polynomial {
    float a, b, c, eps;
};

// What a thread has for itself.
struct Own : Multiplier {
    using Multiplier::Multiplier;
    Arena arena;
};

class Training {
  public:
    Training(const TrainKernels& kernels, const FloatProducts& products, int num_threads)
        : kernels_(kernels), products_(products), team_(num_threads) {
        for (int i = 0; i < num_threads; i++) own_.emplace_back(products);
    }

    void linears(LinearShape shape, const float* x, std::span<const Linear> all);
    void linears_backward(LinearShape shape, const float* x, std::span<const LinearGradient> all, float* d_x);

    // `choices` and `shares` [tokens, chosen]; gate_up [tokens * chosen, 2 * kept_width(dim)] is for the backward pass.
    std::ptrdiff_t kept_width(int dim) const;
    void mixture(MixtureShape shape, const float* x, const float* shares, const std::int64_t* choices,
                 MixtureWeights weights, float* gate_up, float* y);
    void mixture_backward(MixtureShape shape, const float* x, const float* shares, const std::int64_t* choices,
                          MixtureWeights weights, const float* gate_up, const float* d_y, MixtureGradients gradients);

    // `log_sums` [tokens * heads] are kept for the backward pass.
    void attention(AttentionShape shape, AttentionInput input, float* out, float* log_sums);
    void attention_backward(AttentionShape shape, AttentionInput input, const float* out, const float* log_sums,
                            const float* d_out, AttentionGradients gradients);

    // Returns the sum of the weighted losses of all targets, in nats; d_x and d_head are its gradients.
    double cross_entropy(CrossEntropyShape shape, const float* x, const float* head, const std::int64_t* targets,
                         const float* weights, float* d_x, float* d_head);

    void rms_norm(NormShape shape, const float* x, const float* weight, float* y);
    void rms_norm_backward(NormShape shape, const float* x, const float* weight, const float* d_y, float* d_x,
                           float* d_weight);

    // Matrices become what Newton-Schulz makes of them in so many turns.
    void orthogonalise(std::span<const Matrices> all, Polynomial polynomial, int turns);

    // See TrainKernels; of all of every weight.
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
