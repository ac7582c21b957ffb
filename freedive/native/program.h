// A recorded forward pass with its weights, memory and threads. Python describes the model; C++ knows no family.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cache.h"
#include "paged_experts.h"
#include "states.h"
#include "step.h"
#include "threads.h"

namespace freedive {

// A weight matrix, and the bias of its outputs or null.
struct Matrix {
    Weight weight;
    const float* bias;
};

// Float activations [rows, stride]. The stride is the width rounded up to whole panels; the padding is zero.
struct Buffer {
    int width, stride;
    Rows rows;
    Memory memory;
    bool exact = false;  // products that are written to it are not computed in bfloat16, such as routers' logits
    float* row(int r) const { return memory.as<float>() + std::size_t(r) * stride; }
};

// The routing of a layer of experts: for each row of a step, the chosen experts and their weights.
struct Routes {
    int num_chosen;
    Memory experts, weights;                                            // [rows, stride] each
    int stride() const { return num_panels(num_chosen) * kPanelRows; }  // padded, since threads write neighbouring rows
    std::int32_t* experts_of(int row) const { return experts.as<std::int32_t>() + std::size_t(row) * stride(); }
    float* weights_of(int row) const { return weights.as<float>() + std::size_t(row) * stride(); }
};

// One token routed to one expert, which is the token's expert number `place`. The two weights multiply the expert's
// input and its output.
struct Choice {
    int token, place;
    float input_weight, weight;
};

// All choices of a step, sorted by expert.
struct Groups {
    std::vector<int> first;   // [experts + 1]: where each expert's choices begin in `choices`
    std::vector<int> others;  // [experts]: likewise those of rows that are not multiplied in bfloat16
    std::vector<Choice> choices;
    std::vector<int> active;  // experts with at least one choice
};

// Rows of a buffer by the arithmetic of their products.
struct RowSplit {
    std::span<const int> in_bf16, others;
};

class Program;

// One operation of a program, run by all threads of the team together.
class Operation {
  public:
    virtual ~Operation() = default;
    // Checks that the operation fits the program that it will be added to, and reserves cache layers, states and
    // routes.
    virtual void attach(Program& program) = 0;
    virtual void prepare(Program&) {}  // runs on the caller's thread before a step
    virtual void run(Program& program, int thread) const = 0;
};

// Partial attention results of rows over some of their keys. Threads may share one and write to different ranges of it.
class Partials {
  public:
    void reserve(int count, int width);
    // Resets partial results [first, first + count) to no keys; their values lie `width` floats apart.
    AttendPartial* start(int first, int count, int width);
    const AttendPartial& operator[](int index) const { return states_[index]; }

  private:
    std::vector<AttendPartial> states_;
    std::vector<float> values_;
};

// The scratch memory of one thread.
struct ThreadScratch {
    std::vector<float> floats;
    Memory products, factors;  // see multiply_rows and split_factors
    std::vector<AttendTask> attend;
    Partials partials;
    Groups groups;
    // Memory for pages [begin, end) of a split.
    SplitFactors split_factors(int begin, int end) {
        if (!factors) factors = Memory(SplitFactors::bytes);
        auto* keys = factors.as<std::uint16_t>();
        return {begin, end, keys, keys + SplitFactors::bytes / sizeof *keys / 2};
    }
};

// The program, its weights, its memory and its threads.
class Program {
  public:
    Program(const Kernels& kernels, int num_threads, CacheFormat cache_format)
        : kernels(kernels), team(num_threads), cache(cache_format) {}
    ~Program() { experts->end(); }

    // Recording. Arguments that do not fit throw as described in checks.h; the returned integer names what was added.
    int add_weight(Format format, int rows, int k, std::span<const std::uint8_t> packed, int heads);  // not copied
    int add_vector(std::span<const float> values);
    int add_buffer(int width, Rows rows);
    int add_routes(int num_chosen);
    template <class Op>
    Op& add(std::unique_ptr<Op> operation) {
        Op& added = *operation;
        added.attach(*this);
        operations.push_back(std::move(operation));
        return added;
    }
    template <class Op, class... Args>
    void emplace(Args... args) {
        add(std::make_unique<Op>(std::move(args)...));
    }
    // Reads routed experts from a file when a step needs them. To be called before operations are added.
    void page_experts(const PagingOptions& options);
    // Ends recording: allocates buffers for `max_rows` rows a step, a cache of `num_pages` pages, and slots of states.
    void allocate(int max_rows, int num_pages, int num_slots, int num_sequences);

    // Access by index; an index out of bounds throws.
    const Buffer& buffer(int index) const;
    const Weight& weight(int index) const;
    const Routes& routes_of_step(int index) const;
    void require_buffer(int index, int width) const;
    void require_vector(int index, int size) const;  // at least `size` numbers

    Step plan(const StepArrays& arrays) const;
    // Runs operations [begin, end) for a step. The output buffer of the last one holds the result; if `traced`,
    // `seconds` holds the time of each. Throws UnreadableWeights if weights could not be read; `unread_rows` are then
    // the rows of the step that needed them.
    void run(Step step, int begin, int end, bool traced);

    // The number of rows in memory: the rows of a step, and one for each thread except the first (see own_row).
    int memory_rows() const { return max_rows + team.size() - 1; }
    // The row where a thread keeps its own copy of the only row of a step (see for_rows).
    int own_row(int thread) const { return thread ? max_rows + thread - 1 : 0; }
    int num_rows(int buffer) const { return step.num_rows(buffers[buffer].rows); }
    // The threshold of quantise() for a row: groups above it keep 16 bits; 0 means that all groups do.
    float outlier_threshold(Rows rows, int row) const {
        if (is_bf16(rows, row)) return 0;  // what of it is not in bfloat16 is exact
        return rows == Rows::Tokens && step.is_early(row) ? early_outlier_threshold : late_outlier_threshold;
    }

    // On levels with tiles the rows of prompts are multiplied in bfloat16, unless all rows are to be exact. It follows
    // from a row's position in its request alone.
    bool has_bf16_prompts() const { return bf16_prompts && kernels.to_bf16; }
    // Weights in floats are kept exact.
    bool multiplies_in_bf16(Format format) const { return has_bf16_prompts() && format != Format::F32; }
    bool is_in_bf16(const Sequence& sequence) const { return has_bf16_prompts() && sequence.prompt > kShortPrompt; }
    bool is_bf16(Rows rows, int row) const {
        return rows == Rows::Tokens && is_in_bf16(step.sequences[step.sequence_of[row]]) && !step.is_generated(row);
    }
    RowSplit split(int buffer, bool exact = false) const {
        const bool splits = buffers[buffer].rows == Rows::Tokens && !exact;
        return splits ? RowSplit{in_bf16_, others_} : RowSplit{{}, {every_row_.data(), std::size_t(num_rows(buffer))}};
    }

    const Kernels& kernels;
    Team team;
    std::vector<Weight> weights;
    std::vector<std::vector<float>> vectors;  // norms, biases, frequencies; padded to whole panels
    std::vector<Buffer> buffers;
    std::vector<Routes> routes;
    std::vector<std::unique_ptr<Operation>> operations;
    std::shared_ptr<ExpertSource> experts = std::make_shared<MappedExperts>();
    Cache cache;
    States states;
    Step step;
    Partials partials;                   // partial attention results by split of keys, to be merged
    std::vector<float> absorbed;         // latent attention's absorbed queries: [query][groups of 16 heads][dim][16]
    std::vector<ThreadScratch> scratch;  // one for each thread
    int num_tokens = 0;                  // rows of the embedding table
    int max_rows = 0, widest = 0;        // the most rows of a step; the widest input of a linear operation
    float cache_preference = 0;          // how much generated tokens prefer experts in memory, 0 to 1 (Router::prefer)
    bool bf16_prompts = false;           // see has_bf16_prompts
    float early_outlier_threshold = 0;   // threshold of quantise() for the early tokens of a prompt
    float late_outlier_threshold = 0;    // threshold for the last tokens of a prompt and for generated ones

    // Prepared inputs of linear operations: normed floats, and their codes. `hidden` holds the experts' hidden
    // activations between the gated unit and the down projection, at most `hidden_width` numbers for each token.
    Memory normed, codes, hidden;
    int hidden_width = 0;

    // The times of a traced step: until the first operation began, then of each operation.
    std::vector<double> seconds;
    std::vector<int> unread_rows;

  private:
    void split_rows();
    std::vector<int> every_row_, in_bf16_, others_;  // the latter two of Rows::Tokens
    std::vector<int> rows_of(const std::vector<UnreadableWeights::Record>& records) const;
};

}  // namespace freedive
