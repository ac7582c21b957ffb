// A recorded forward pass and what it runs on. Python decides what the model is; nothing here knows a family.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cache.h"
#include "states.h"
#include "threads.h"

namespace freedive {

// Which rows of a step a buffer holds: all tokens, or those whose logits are wanted.
enum class Rows : int { Tokens, Wanted };

// Activations [rows, stride] in floats; the stride is the width rounded up to whole panels, the padding is zero.
struct Buffer {
    int width, stride;
    Rows rows;
    Memory memory;
    float* row(int r) const { return memory.as<float>() + std::size_t(r) * stride; }
};

constexpr int kCarefulTokens = 32;  // last ones of a prompt, on which the answer depends most

// A copy of a state to be made as it passes a position.
struct Save {
    int position, slot;
};

struct Sequence {
    int row, length, start;  // first row and number of rows in this step; position of the first
    int prompt;              // positions below this were given, the others generated
    const std::int32_t* pages;
    // Where its state lies, the position that it stands at, and the one that this step moves it to. From there to the
    // start are draft tokens of the step before, which have been accepted; rows behind the end are draft tokens.
    int slot = 0, state_begin = 0, state_end = 0;
    std::vector<Save> saves;
    int end() const { return start + length; }
};

struct Step {
    std::span<const std::int32_t> tokens, wanted;
    std::vector<Sequence> sequences;
    std::vector<int> positions, sequence_of;  // by row
    // Whether all but the last few tokens of the row's prompt come after it.
    bool is_early(int row) const { return positions[row] < sequences[sequence_of[row]].prompt - kCarefulTokens; }
    int num_rows(Rows rows) const { return int(rows == Rows::Tokens ? tokens.size() : wanted.size()); }
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

class Machine;

// One operation of the program, run by all threads of the team together.
class Operation {
  public:
    virtual ~Operation() = default;
    virtual void prepare(Machine&) {}  // on the caller's thread, before a step
    virtual void run(Machine& machine, int thread) const = 0;
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
struct Local {
    std::vector<float> floats;
    Partials partials;
    Groups groups;
};

// The program, its weights, its memory and its threads.
class Machine {
  public:
    Machine(const Kernels& kernels, int num_threads, CacheFormat cache_format)
        : kernels(kernels), team(num_threads), cache(cache_format) {}

    int add_buffer(int width, Rows rows);
    // Ends recording: allocates buffers for `max_rows` rows a step, a cache of `num_pages` pages, and slots of states.
    void allocate(int max_rows, int num_pages, int num_slots, int num_sequences);
    // Runs operations `begin` to `end` for a step; the last one's output buffer then holds their result, and `seconds`
    // what each took if `traced`.
    void run(Step step, int begin, int end, bool traced);

    // Rows that memory is for: those of a step, and one for each thread but the first (see own_row).
    int memory_rows() const { return max_rows + team.size() - 1; }
    // Where a thread keeps what it makes for itself of a step's only row.
    int own_row(int thread) const { return thread ? max_rows + thread - 1 : 0; }
    int num_rows(int buffer) const { return step.num_rows(buffers[buffer].rows); }
    // How choosy quantise() is with a row's low halves; 0 keeps all.
    float care(Rows rows, int row) const { return rows == Rows::Tokens && step.is_early(row) ? early_care : late_care; }

    const Kernels& kernels;
    Team team;
    std::vector<Weight> weights;
    std::vector<std::vector<float>> vectors;  // norms, biases, frequencies; padded to whole panels
    std::vector<Buffer> buffers;
    std::vector<std::unique_ptr<Operation>> operations;
    Cache cache;
    States states;
    Step step;
    Partials partials;             // what splits of keys make of rows, to be merged
    std::vector<float> absorbed;   // queries of latent attention: [query][groups of 16 heads][dim][16]
    std::vector<Local> locals;     // of each thread
    int max_rows = 0, widest = 0;  // rows of a step; numbers of a linear's input
    float early_care = 0;          // of quantise(), for the tokens that come early in a prompt
    float late_care = 0;           // for its last ones, and those generated

    // Inputs of a linear, made ready: normed floats and their codes. Of each token, what its experts make between glu
    // and down, at most `hidden_width` numbers.
    Memory normed, codes, hidden;
    int hidden_width = 0;

    // Of a traced step: until the first operation began, then of each operation.
    std::vector<double> seconds;
};

}  // namespace freedive
