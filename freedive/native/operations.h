// The operations a program is made of. Integers name buffers, weights and vectors of the machine; -1 is none.
#pragma once

#include "program.h"

namespace freedive {

constexpr int kNone = -1;

// Rows of the token embedding, one per token of the step.
struct Embed final : Operation {
    int table, out;
    Embed(int table, int out) : table(table), out(out) {}
    void run(Machine& machine, int thread) const override;
};

// Rows whose logits are wanted.
struct Select final : Operation {
    int in, out;
    Select(int in, int out) : in(in), out(out) {}
    void run(Machine& machine, int thread) const override;
};

// cos and sin of position * inv_freq for each row: [cos: n | sin: n], times factor.
struct RopeTable final : Operation {
    int inv_freq, out;
    float factor;
    RopeTable(int inv_freq, float factor, int out) : inv_freq(inv_freq), out(out), factor(factor) {}
    void run(Machine& machine, int thread) const override;
};

// An optional RMS norm of a linear's input, done while the input is made ready.
struct InputNorm {
    int weight = kNone;
    float eps = 0;
};

// out_i = norm(in) weights_i^T + bias_i for weights that share an input; a single one may add a residual.
struct Linear final : Operation {
    struct Output {
        int weight, bias, out;
    };
    int in;
    InputNorm norm;
    std::vector<Output> outputs;
    int residual;
    Linear(int in, InputNorm norm, std::vector<Output> outputs, int residual)
        : in(in), norm(norm), outputs(std::move(outputs)), residual(residual) {}
    void run(Machine& machine, int thread) const override;
};

// out = act(norm(in) gate^T) * (norm(in) up^T).
struct Glu final : Operation {
    int in;
    InputNorm norm;
    Linear::Output gate, up;
    Activation activation;
    Glu(int in, InputNorm norm, Linear::Output gate, Linear::Output up, Activation activation)
        : in(in), norm(norm), gate(gate), up(up), activation(activation) {}
    void run(Machine& machine, int thread) const override;
};

// What is done to each head of q or k before attention, in order.
struct HeadStep {
    enum Kind : int { Norm, RopeHalves, RopeInterleaved } kind;
    int operand;  // Norm: vector of weights. Rope: buffer of a RopeTable
    int dim;      // Rope: rotated dimensions
    float eps;    // Norm
};

// Appends k and v to the cache, then attends: causal, over `window` positions if that is not 0.
struct Attention final : Operation {
    int q, k, v, out;
    int num_heads, num_kv_heads, key_dim, value_dim;
    float scale;
    int window, layer;
    std::vector<HeadStep> q_steps, k_steps;

    void prepare(Machine& machine) override;
    void run(Machine& machine, int thread) const override;

  private:
    // Query rows [first, first + count) of one sequence and key-value head (row = token * heads per kv head + head),
    // against splits [split_begin, split_end). The result goes to partial rows from `partial`, or if that is kNone
    // straight to the output.
    struct Tile {
        int sequence, head, first, count, split_begin, split_end, partial;
    };
    // A decoding token whose splits were taken apart: partial row = partial + split * heads per kv head + head.
    struct Merge {
        int sequence, head, num_splits, partial;
    };
    int group() const { return num_heads / num_kv_heads; }
    void store(Machine& machine, int row, int head) const;
    void attend(Machine& machine, const Tile& tile) const;
    void merge(Machine& machine, const Merge& merge) const;
    float* out_row(Machine& machine, int sequence, int head, int row) const;
    float* partial_row(Machine& machine, int row) const;

    std::vector<Tile> tiles_;
    std::vector<Merge> merges_;
};

}  // namespace freedive
