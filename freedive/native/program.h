// A recorded forward pass and what it runs on. Python decides what the model is; nothing here knows a family.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cache.h"
#include "expert_source.h"
#include "states.h"
#include "step.h"
#include "threads.h"

namespace freedive {

// Activations [rows, stride] in floats; the stride is the width rounded up to whole panels, the padding is zero.
struct Buffer {
    int width, stride;
    Rows rows;
    Memory memory;
    float* row(int r) const { return memory.as<float>() + std::size_t(r) * stride; }
};

// Of a layer with experts, by row of a step: the experts that its token goes to, and their weights.
struct Routes {
    int num_chosen;
    Memory experts, weights;                                            // [rows, stride]
    int stride() const { return num_panels(num_chosen) * kPanelRows; }  // threads write rows beside each other
    std::int32_t* experts_of(int row) const { return experts.as<std::int32_t>() + std::size_t(row) * stride(); }
    float* weights_of(int row) const { return weights.as<float>() + std::size_t(row) * stride(); }
};

// That a token goes to an expert, which is in some place among those that it goes to. Weights multiply what the expert
// is given, and what it makes of that.
struct Choice {
    int token, place;
    float input_weight, weight;
};

// A step's choices, sorted by expert.
struct Groups {
    std::vector<int> first;  // of each expert, and the end: indices into choices
    std::vector<Choice> choices;
    std::vector<int> active;  // experts that have any
};

class Program;

// One operation of a program, run by all threads of the team together.
class Operation {
  public:
    virtual ~Operation() = default;
    // Checks that the operation fits a program that it is about to be added to, and claims what it keeps there.
    virtual void attach(Program& program) = 0;
    virtual void prepare(Program&) {}  // on the caller's thread, before a step
    virtual void run(Program& program, int thread) const = 0;
};

// States of rows on their way through the keys. Threads share one where they write to different ranges of it.
class Partials {
  public:
    void reserve(int count, int width);
    // States [first, first + count) that have seen nothing, their values `width` floats apart from each other.
    AttendPartial* start(int first, int count, int width);
    const AttendPartial& operator[](int index) const { return states_[index]; }

  private:
    std::vector<AttendPartial> states_;
    std::vector<float> values_;
};

// Scratch memory of a thread.
struct ThreadScratch {
    std::vector<float> floats;
    Partials partials;
    Groups groups;
};

// The program, its weights, its memory and its threads.
class Program {
  public:
    Program(const Kernels& kernels, int num_threads, CacheFormat cache_format)
        : kernels(kernels), team(num_threads), cache(cache_format) {}

    // Recording. What does not fit is refused as checks.h says; integers that are returned name what was added.
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
    // Ends recording: allocates buffers for `max_rows` rows a step, a cache of `num_pages` pages, and slots of states.
    void allocate(int max_rows, int num_pages, int num_slots, int num_sequences);

    // What is named by an index, which is checked.
    const Buffer& buffer(int index) const;
    const Weight& weight(int index) const;
    const Routes& routes_of_step(int index) const;
    void require_buffer(int index, int width) const;
    void require_vector(int index, int size) const;  // of at least so many numbers

    Step plan(const StepArrays& arrays) const;
    // Runs operations `begin` to `end` for a step; the last one's output buffer then holds their result, and `seconds`
    // what each took if `traced`.
    void run(Step step, int begin, int end, bool traced);

    // Rows that memory is for: those of a step, and one for each thread but the first (see own_row).
    int memory_rows() const { return max_rows + team.size() - 1; }
    // Where a thread keeps what it makes for itself of a step's only row.
    int own_row(int thread) const { return thread ? max_rows + thread - 1 : 0; }
    int num_rows(int buffer) const { return step.num_rows(buffers[buffer].rows); }
    // Of quantise(): which groups of a row keep their low halves; 0 keeps all.
    float outlier_threshold(Rows rows, int row) const {
        return rows == Rows::Tokens && step.is_early(row) ? early_outlier_threshold : late_outlier_threshold;
    }

    const Kernels& kernels;
    Team team;
    std::vector<Weight> weights;
    std::vector<std::vector<float>> vectors;  // norms, biases, frequencies; padded to whole panels
    std::vector<Buffer> buffers;
    std::vector<Routes> routes;
    std::vector<std::unique_ptr<Operation>> operations;
    std::unique_ptr<ExpertSource> experts = std::make_unique<MappedExperts>();
    Cache cache;
    States states;
    Step step;
    Partials partials;                   // what splits of keys make of rows, to be merged
    std::vector<float> absorbed;         // queries of latent attention: [query][groups of 16 heads][dim][16]
    std::vector<ThreadScratch> scratch;  // of each thread
    int num_tokens = 0;                  // that the embedding has rows for
    int max_rows = 0, widest = 0;        // rows of a step; numbers of a linear's input
    float early_outlier_threshold = 0;   // of quantise(), for the tokens that come early in a prompt
    float late_outlier_threshold = 0;    // for its last ones, and those generated

    // Inputs of a linear, made ready: normed floats and their codes. Of each token, what its experts make between glu
    // and down, at most `hidden_width` numbers.
    Memory normed, codes, hidden;
    int hidden_width = 0;

    // Of a traced step: until the first operation began, then of each operation.
    std::vector<double> seconds;
};

}  // namespace freedive
