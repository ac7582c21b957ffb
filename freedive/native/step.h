// One step of a program: the rows that it computes, whose they are, and what happens to per-sequence states.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace freedive {

// Which rows of a step a buffer holds: all tokens, or those whose logits are wanted.
enum class Rows : int { Tokens, Wanted };

constexpr int kLatePromptTokens = 32;  // last ones of a prompt, on which the answer depends most

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
    bool is_early(int row) const { return positions[row] < sequences[sequence_of[row]].prompt - kLatePromptTokens; }
    int num_rows(Rows rows) const { return int(rows == Rows::Tokens ? tokens.size() : wanted.size()); }
};

// Integers [rows, columns].
struct IntTable {
    const std::int32_t* data;
    std::size_t rows, columns;
    const std::int32_t* row(std::size_t index) const { return data + index * columns; }
};

// A step as the engine describes it; the arrays must outlive the Step that is made of them. `wanted` are rows; of each
// sequence there are a length, the first position, the end of its prompt and its pages.
struct StepArrays {
    std::span<const std::int32_t> tokens, lengths, starts;
    IntTable pages;
    std::span<const std::int32_t> wanted, prompts;
    // Of models with per-sequence states. Of each sequence: slot, begin and end. Of each copy: sequence, position,
    // slot.
    std::optional<IntTable> moves, saves;
};

}  // namespace freedive
