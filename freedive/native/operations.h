// The operations a program is made of. Integers name buffers, weights and vectors of the machine; -1 is none.
#pragma once

#include <optional>

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

// What is done to a product as it is written: times a factor, plus residuals.
struct Epilogue {
    float factor = 1;
    std::vector<int> residuals;
    // Columns [first, first + count) of one row.
    void write(const Machine& machine, const float* x, const Buffer& to, int row, int first, int count) const;
};

// out_i = norm(in) weights_i^T + bias_i for weights that share an input.
struct Linear final : Operation {
    struct Output {
        int weight, bias, out;
    };
    int in;
    InputNorm norm;
    std::vector<Output> outputs;
    Epilogue epilogue;
    Linear(int in, InputNorm norm, std::vector<Output> outputs, Epilogue epilogue)
        : in(in), norm(norm), outputs(std::move(outputs)), epilogue(std::move(epilogue)) {}
    void run(Machine& machine, int thread) const override;
};

// out = act(norm(in) gate^T) * (norm(in) up^T).
struct GluLinear final : Operation {
    int in;
    InputNorm norm;
    Linear::Output gate, up;
    Glu glu;
    GluLinear(int in, InputNorm norm, Linear::Output gate, Linear::Output up, Glu glu)
        : in(in), norm(norm), gate(gate), up(up), glu(glu) {}
    void run(Machine& machine, int thread) const override;
};

// Which experts a token goes to and with what weights, from the logits of a linear.
constexpr int kMaxExperts = 1024;
enum class GroupChoice : int { Best, BestTwo, Each };
struct Router {
    int num_experts, num_chosen;
    bool sigmoid, renormalise;
    float scale;
    int choice_bias, expert_scale;  // vectors
    int num_groups, kept_groups;
    GroupChoice group_choice;
    bool weighs_input;
    void route(const Machine& machine, const float* logits, float* result) const;  // [chosen: k | weights: k]
};

struct Input;
struct Products;

// out = the sum of what each token's experts make of norm(in), by their weights.
struct Experts final : Operation {
    struct Matrix {
        Weight weight;
        const float* bias;  // may be null
    };
    struct Expert {
        Matrix gate, up, down;
        Glu glu;
        int hidden_stride() const { return num_panels(gate.weight.rows) * kPanelRows; }
    };
    int in, logits, routes, out;
    InputNorm norm;
    Router router;
    Expert first;  // of the router's; the weights of the next lie `stride` bytes on
    std::size_t stride;
    std::optional<Expert> shared;  // one more, after the router's, that all tokens go to
    int shared_gate;               // buffer [rows, 1]: its sigmoid is the weight of the shared one
    Epilogue epilogue;
    int num_places() const { return router.num_chosen + (shared ? 1 : 0); }
    // Of a token, between glu and down: its experts' results beside each other.
    int hidden_width() const {
        return router.num_chosen * first.hidden_stride() + (shared ? shared->hidden_stride() : 0);
    }
    void run(Machine& machine, int thread) const override;

  private:
    Expert expert(int index) const;
    float shared_weight(const Machine& machine, int token) const;
    void group(const Machine& machine, int first_row, Groups& groups) const;
    void run_glu(Machine& machine, const Input& input, const Groups& groups) const;
    void make_hidden(const Machine& machine, const Input& input, const Expert& expert, int panel,
                     std::span<const Choice> choices) const;
    void quantise_whole(Machine& machine) const;
    void run_down(Machine& machine, const Groups& groups) const;
    void add_down(const Machine& machine, const Expert& expert, int panel, std::span<const Choice> choices) const;
    float* hidden_row(const Machine& machine, const Choice& choice) const;
};

// Arithmetic on whole rows that no product takes along.
struct RowOperation final : Operation {
    enum Kind : int { Norm, Scale, Softcap, Clip, Gate, Add } kind;
    int in, other, out;  // other: Norm's vector of weights, the gates [rows, 1], or what is added
    float value;         // epsilon, factor, cap or limit
    RowOperation(Kind kind, int in, int other, float value, int out)
        : kind(kind), in(in), other(other), out(out), value(value) {}
    void run(Machine& machine, int thread) const override;
};

// What is done to each head of q or k before attention, in order.
struct HeadStep {
    enum Kind : int { Norm, RopeHalves, RopeInterleaved, Temper } kind;
    int operand;  // Norm: vector of weights. Rope: buffer of a RopeTable
    int dim;      // Rope: rotated dimensions
    float a, b;   // Norm: epsilon. Temper: floor_scale, scale
};
void apply(const Machine& machine, const HeadStep& step, int row, int dim, float* head);

// What a row makes of all keys that it sees, from its state.
void write_result(const AttendPartial& state, int n, float* out);
// A row's splits folded in order; they lie `step` states apart from `first` on.
const AttendPartial& fold_splits(Machine& machine, int first, int step, int num_splits, int width, Local& local);

// Appends k and v to the cache, then attends: causal, over `window` positions if that is not 0, or inside runs of
// `chunk` positions.
struct Attention final : Operation {
    int q, k, v, out;
    int num_heads, num_kv_heads, key_dim, value_dim;
    float scale, softcap;
    int window, chunk, sinks, layer;
    std::vector<HeadStep> q_steps, k_steps;

    void prepare(Machine& machine) override;
    void run(Machine& machine, int thread) const override;

  private:
    // Query rows [first, first + count) of one sequence and key-value head (row = token * heads per kv head + head),
    // against splits [split_begin, split_end). The result stays in partials from `partial` on, or if that is kNone
    // goes straight to the output.
    struct Tile {
        int sequence, head, first, count, split_begin, split_end, partial;
    };
    // All `count` rows of a sequence and key-value head, whose splits were taken apart: partials [split][row].
    struct Merge {
        int sequence, head, count, num_splits, partial;
    };
    int group() const { return num_heads / num_kv_heads; }
    int first_key(int position) const;
    int stride(const Machine& machine) const { return machine.cache.layer(layer).value_stride(); }
    void store(Machine& machine, int row, int head) const;
    void attend(Machine& machine, const Tile& tile, Local& local) const;
    void attend_split(Machine& machine, const Sequence& sequence, int head, int split, AttendTask& task,
                      AttendPartial* states) const;
    void merge(Machine& machine, const Merge& merge, Local& local) const;
    void finish(Machine& machine, int sequence, int head, int row, AttendPartial state) const;

    std::vector<Tile> tiles_;
    std::vector<Merge> merges_;
};

// out = c * (conv(b * x) + bias), where `in` holds b, c and x of the width of out beside each other; x is overwritten.
struct ShortConv final : Operation {
    int in, out, taps, bias, kernel, state;  // taps [kernel, width]: those of the oldest token first
    ShortConv(int in, int out, int taps, int bias, int kernel, int state)
        : in(in), out(out), taps(taps), bias(bias), kernel(kernel), state(state) {}
    void run(Machine& machine, int thread) const override;

  private:
    void convolve(Machine& machine, const Sequence& sequence, int first, int count, Local& local) const;
};

// Multi-head latent attention. The cache keeps one latent row a token: `rank` numbers that keys and values are made of,
// then `rope_dim` rotated ones. Rows of a prompt attend to expanded keys and values, head by head; generated ones to
// the latents themselves (absorbed).
struct LatentAttention final : Operation {
    int q, kv, out;
    InputNorm norm;
    int k_b, v_b;  // weights of all heads: [nope_dim, rank] and [value_dim, rank], in floats
    int num_heads, nope_dim, rope_dim, value_dim, rank;
    float scale;
    HeadStep rope;
    int layer;

    void prepare(Machine& machine) override;
    void run(Machine& machine, int thread) const override;

  private:
    // The first `count` rows of a sequence, which belong to its prompt.
    struct Expanded {
        int sequence, count;
    };
    // One row's heads [first_head, + 16) against one split.
    struct Absorbed {
        int sequence, row, query, first_head, split, partial;
    };
    struct Merge {
        int row, head, num_splits, partial;
    };
    int head_dim() const { return nope_dim + rope_dim; }
    int dim() const { return rank + rope_dim; }
    int head_groups() const { return (num_heads + kLatentHeads - 1) / kLatentHeads; }
    float* absorbed_query(Machine& machine, int query, int head) const;
    std::uint8_t* latent(Machine& machine, const Sequence& sequence, int position) const;
    int stride(const Machine& machine) const { return machine.cache.layer(layer).value_stride(); }
    Weight head_of(const Machine& machine, int weight, int head) const;
    void take_in(Machine& machine, int row, int head) const;
    void store(Machine& machine, int row) const;
    void absorb(Machine& machine, int row, int query, int head) const;
    void attend_expanded(Machine& machine, const Expanded& task, int head, Local& local) const;
    void take_queries(Machine& machine, const Sequence& sequence, int head, int first, float* to,
                      AttendTask& task) const;
    void expand(Machine& machine, const Sequence& sequence, int head, int begin, int end, float* latents, float* keys,
                float* values) const;
    void attend_absorbed(Machine& machine, const Absorbed& task) const;
    void merge(Machine& machine, const Merge& merge, Local& local) const;

    std::vector<Expanded> expanded_;
    std::vector<Absorbed> absorbed_;
    std::vector<Merge> merges_;
    std::vector<int> query_of_;  // by row: its index among those that are absorbed, or kNone
};

}  // namespace freedive
