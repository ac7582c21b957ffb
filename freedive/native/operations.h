// The operations of a program. Integers are indices of its buffers, weights and vectors; -1 means none.
#pragma once

#include <optional>

#include "program.h"

namespace freedive {

constexpr int kNone = -1;

// Rows of the token embedding, one per token of the step.
struct Embed final : Operation {
    int table, out;
    Embed(int table, int out) : table(table), out(out) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// Copies the rows whose logits are wanted.
struct Select final : Operation {
    int in, out;
    Select(int in, int out) : in(in), out(out) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// cos and sin of position * inv_freq for each row: [cos: n | sin: n], times factor.
struct RopeTable final : Operation {
    int inv_freq, out;
    float factor;
    RopeTable(int inv_freq, float factor, int out) : inv_freq(inv_freq), out(out), factor(factor) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// An optional RMS norm of a linear operation's input, applied while the input is prepared.
struct InputNorm {
    int weight = kNone;
    float eps = 0;
};

// Applied to a product as it is written: multiplies by a factor and adds residuals.
struct Epilogue {
    float factor = 1;
    std::vector<int> residuals;
    // Writes columns [first, first + count) of one row.
    void write(const Program& program, const float* x, const Buffer& to, int row, int first, int count) const;
    // Writes the products of a panel [rows, 32] to its columns of these rows.
    void write_panel(const Program& program, const float* products, const Buffer& to, std::span<const int> rows,
                     int panel) const;
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
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// out = act(norm(in) gate^T) * (norm(in) up^T).
struct GluLinear final : Operation {
    int in;
    InputNorm norm;
    Linear::Output gate, up;
    Glu glu;
    GluLinear(int in, InputNorm norm, Linear::Output gate, Linear::Output up, Glu glu)
        : in(in), norm(norm), gate(gate), up(up), glu(glu) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// Which experts a token goes to and with what weights, from the logits of a linear.
constexpr int kMaxExperts = 1024;
enum class GroupChoice : int { Best, BestTwo, Each };
enum class RouterScore : int { Softmax, Sigmoid };
struct Router {
    int num_experts, num_chosen;
    RouterScore score;
    bool renormalise;
    float scale;
    int choice_bias, expert_scale;  // vectors
    int num_groups, kept_groups;
    GroupChoice group_choice;
    bool weighs_input;
    // Writes the chosen experts and their weights. Where `cached` is not empty, those experts are preferred.
    void route(const Program& program, const float* logits, std::span<const std::uint8_t> cached, std::int32_t* experts,
               float* weights) const;

  private:
    void rate(const Program& program, const float* logits, float* scores, float* merit) const;
    void choose(float* merit, std::int32_t* experts) const;
    void prefer(const Program& program, const float* logits, std::span<const std::uint8_t> cached, const float* merit,
                std::int32_t* experts) const;
};

// Returns the router if its numbers are consistent; else throws std::invalid_argument.
Router checked(Router router);

struct Input;
struct Products;

// out = the weighted sum of the outputs of each token's experts for norm(in).
struct Experts final : Operation {
    struct Expert {
        Matrix gate, up, down;
        Glu glu;
        int hidden_stride() const { return num_panels(gate.weight.rows) * kPanelRows; }
    };
    // Where a matrix lies in each expert's record, and its bias if it has one.
    struct Part {
        Format format;
        int rows, k;
        std::size_t offset;
        std::optional<std::size_t> bias;
    };
    // The router's experts, one record each.
    struct Records {
        ExpertLayer layer;
        Part gate, up, down;
        Glu glu;
    };
    struct Named {
        int weight, bias;
    };
    struct SharedWeights {
        Named gate, up, down;
        Glu glu;
    };
    int in, logits, out;
    InputNorm norm;
    Router router;
    Records records;
    std::optional<SharedWeights> shared_weights;  // of one more expert, which all tokens go to
    int shared_gate = kNone;                      // buffer [rows, 1]: its sigmoid is the weight of the shared one
    Epilogue epilogue;

    // Of the program, once attached.
    int routes, layer;             // layer: of the source of experts
    Expert routed;                 // one of the router's, without its numbers
    std::optional<Expert> shared;  // after the router's
    int num_places() const { return router.num_chosen + (shared ? 1 : 0); }
    // Of a token, between glu and down: its experts' results beside each other.
    int hidden_width() const {
        return router.num_chosen * routed.hidden_stride() + (shared ? shared->hidden_stride() : 0);
    }
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;

  private:
    Expert expert(const Program& program, int index) const;
    float shared_weight(const Program& program, int token) const;
    void group(const Program& program, int first_row, Groups& groups) const;
    void run_glu(Program& program, int thread, const Input& input, const Groups& groups, std::span<const int> routed,
                 bool and_shared) const;
    void make_hidden(const Program& program, const Input& input, const Expert& expert, int panel,
                     std::span<const Choice> choices) const;
    void make_hidden(Program& program, int thread, const Input& input, const Expert& expert, int first, int last,
                     std::span<const Choice> choices) const;
    void write_hidden(const Program& program, const Expert& expert, int panel, std::span<const Choice> choices,
                      float* gate, float* up) const;
    void quantise_whole(Program& program, std::span<const Choice> choices) const;
    void run_down(Program& program, int thread, const Groups& groups, std::span<const int> wave, bool is_first) const;
    void add_down(const Program& program, const Expert& expert, int panel, std::span<const Choice> choices) const;
    void add_down(Program& program, int thread, const Expert& expert, int first, int last,
                  std::span<const Choice> choices) const;
    void add_weighed(const Program& program, int panel, const Choice& choice, const float* products) const;
    float* hidden_row(const Program& program, const Choice& choice) const;
};

// Arithmetic on whole rows that is not fused with a product.
struct RowOperation final : Operation {
    enum Kind : int { Scale, Softcap, Clip, SigmoidGate, SoftplusGate, ScaleByPosition, Add } kind;
    // other: the gates [rows, n], a vector of offset, floor_scale and scale of ScaleByPosition, or what is added
    int in, other, out;
    float value;  // factor, cap or limit
    RowOperation(Kind kind, int in, int other, float value, int out)
        : kind(kind), in(in), other(other), out(out), value(value) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// out = (norm(in) * epilogue.factor + residuals) * after, where each `part` columns of `in` are normed on their own.
struct RowNorm final : Operation {
    int in, out;
    InputNorm norm;
    int part;
    Epilogue epilogue;
    float after;
    RowNorm(int in, int out, InputNorm norm, int part, Epilogue epilogue, float after)
        : in(in), out(out), norm(norm), part(part), epilogue(std::move(epilogue)), after(after) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// out = act(gate) * columns [first, first + width of out) of up.
struct RowGlu final : Operation {
    int gate, up, first, out;
    Glu glu;
    RowGlu(int gate, int up, int first, int out, Glu glu) : gate(gate), up(up), first(first), out(out), glu(glu) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
};

// A step applied to each head of q, k or v before attention, in order.
struct HeadStep {
    enum Kind : int { Norm, RopeHalves, RopeInterleaved, ScaleByPosition } kind;
    int operand;  // Norm: vector of weights. Rope: buffer of a RopeTable
    int dim;      // Rope: rotated dimensions. ScaleByPosition: added to the position
    float a, b;   // Norm: epsilon. ScaleByPosition: floor_scale, scale
};
void apply(const Program& program, const HeadStep& step, int row, int dim, float* head);

// The factor of an attention temperature at a position.
float temperature(int position, float floor_scale, float scale);

// Writes the attention result of a row over all keys that it sees.
void write_result(const AttendPartial& state, int n, float* out);
// Writes query r of an attention task, where its kernel expects it.
void write_query(const Program& program, bool in_bf16, const float* query, int dim, int r, float* to);
// Merges the partial results of a row's splits in order; they lie `step` apart, beginning with `first`.
const AttendPartial& fold_splits(Program& program, int first, int step, int num_splits, int width,
                                 ThreadScratch& scratch);

// Appends k and v to the cache, then attends: causal, over `window` positions if that is not 0, or inside runs of
// `chunk` positions. Without k and v, it attends to what layer `source` of the cache has.
struct Attention final : Operation {
    int q, k, v, out, source;
    int num_heads, num_kv_heads, key_dim, value_dim;
    float scale, softcap;
    int window, chunk, sinks, layer;
    std::vector<HeadStep> q_steps, k_steps, v_steps;

    void attach(Program& program) override;
    void prepare(Program& program) override;
    void run(Program& program, int thread) const override;

  private:
    // Query rows [first, first + count) of one sequence and key-value head (row = token * heads per kv head + head),
    // against splits [split_begin, split_end). The result stays in partials from `partial` on, or if that is kNone
    // goes straight to the output.
    struct Tile {
        int sequence, head, first, count, split_begin, split_end, partial;
        bool in_bf16;  // rows of a prompt, on a level with tiles
    };
    // Rows [first, first + count) of a sequence and key-value head, whose splits were taken apart: partials
    // [split][row].
    struct Merge {
        int sequence, head, first, count, num_splits, partial;
    };
    bool uses_bf16(const Program& program, const Sequence& sequence) const;
    void add_tiles(const Program& program, const Tile& rows, int most, int& num_partials);
    int group() const { return num_heads / num_kv_heads; }
    int first_key(int position) const;
    int stride(const Program& program) const { return program.cache.layer(layer).value_stride(); }
    void store(Program& program, int row, int head) const;
    void attend(Program& program, const Tile& tile, ThreadScratch& scratch) const;
    AttendTask take_queries(const Program& program, const Tile& tile, int first, float* to) const;
    void attend_split(Program& program, const Tile& tile, int split, ThreadScratch& scratch,
                      AttendPartial* states) const;
    void merge(Program& program, const Merge& merge, ThreadScratch& scratch) const;
    void finish(Program& program, int sequence, int head, int row, AttendPartial state) const;

    std::vector<Tile> tiles_;
    std::vector<Merge> merges_;
};

// out = c * (conv(b * x) + bias), where `in` holds b, c and x of the width of out beside each other; x is overwritten.
// Or if it is not gated out = silu(conv(x) + bias), where `in` holds x.
struct ShortConv final : Operation {
    int in, out, taps, bias, kernel;  // taps [kernel, width]: those of the oldest token first
    bool gated;
    int state;
    ShortConv(int in, int out, int taps, int bias, int kernel, bool gated)
        : in(in), out(out), taps(taps), bias(bias), kernel(kernel), gated(gated) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;

  private:
    void convolve(Program& program, const Sequence& sequence, int first, int count, ThreadScratch& scratch) const;
};

// The gated delta rule (isa/kernels.h) for all value heads, from q, k, v, beta and decay before norms and gates, which
// overwrite them. The value heads of a key head lie beside each other, or num_key_heads apart if `tiled`.
struct DeltaRule final : Operation {
    int q, k, v, beta, decay, out;
    int num_key_heads, num_value_heads, key_dim, value_dim;
    bool by_channel, tiled;
    int rate, bias;  // vectors of as many numbers as decays
    float decay_bound;

    // Of the program, once attached.
    int state, query_weight, key_weight;
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;

  private:
    int key_head(int head) const;
    int input_dim(const Program& program) const;
    void add_constants(Program& program);
    void normalise(Program& program, int row, int head) const;
    void make_gates(Program& program, int row) const;
    void recur(Program& program, const Sequence& sequence, int head, int first, ThreadScratch& scratch) const;
    int run_end(const Sequence& sequence, int position) const;
    DeltaTask computed(const Program& program, const Sequence& sequence, int position, int head) const;
    DeltaTask drafted(const Program& program, const Sequence& sequence, int position, int head) const;
    void keep_drafts(Program& program, const Sequence& sequence) const;
};

// out = act(gate) * norm(in), each head of `in` being normed on its own.
struct GatedNorm final : Operation {
    int in, gate, out, weight, head_dim;
    float eps;
    Activation activation;
    GatedNorm(int in, int gate, int out, int weight, int head_dim, float eps, Activation activation)
        : in(in), gate(gate), out(out), weight(weight), head_dim(head_dim), eps(eps), activation(activation) {}
    void attach(Program& program) override;
    void run(Program& program, int thread) const override;
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

    void attach(Program& program) override;
    void prepare(Program& program) override;
    void run(Program& program, int thread) const override;

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
    float* absorbed_query(Program& program, int query, int head) const;
    std::uint8_t* latent(Program& program, const Sequence& sequence, int position) const;
    int stride(const Program& program) const { return program.cache.layer(layer).value_stride(); }
    Weight head_of(const Program& program, int weight, int head) const;
    void take_in(Program& program, int row, int head) const;
    void store(Program& program, int row) const;
    void absorb(Program& program, int row, int query, int head) const;
    void attend_expanded(Program& program, int thread, const Expanded& task, int head) const;
    void take_queries(Program& program, const Sequence& sequence, int head, int first, float* to,
                      AttendTask& task) const;
    void expand(Program& program, int thread, const Sequence& sequence, int head, int begin, int end, float* latents,
                float* keys, float* values) const;
    void attend_absorbed(Program& program, const Absorbed& task) const;
    void merge(Program& program, const Merge& merge, ThreadScratch& scratch) const;

    std::vector<Expanded> expanded_;
    std::vector<Absorbed> absorbed_;
    std::vector<Merge> merges_;
    std::vector<int> query_of_;  // by row: its index among those that are absorbed, or kNone
};

}  // namespace freedive
