// One step of a program: the rows that it computes, their sequences, and the updates of per-sequence states.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace freedive {

// Which rows of a step a buffer holds: all tokens, or the output rows, whose logits are returned.
enum class Rows : int { Tokens, Wanted };

constexpr int kLatePromptTokens = 32;  // the last tokens of a prompt, on which the answer depends most
// Prompts of at most so many tokens are read as generated tokens are: for few rows bfloat16 is not faster.
constexpr int kShortPrompt = 16;

// A snapshot of a state, to be written to `slot` when the state reaches `position`.
struct Save {
    int position, slot;
};

struct Sequence {
    int row, length, start;  // the first row and the number of rows in this step; the position of the first row
    int prompt;              // positions below this belong to the prompt, the others were generated
    const std::int32_t* pages;
    // The slot of its state, the position of the state before this step, and its position after this step. Tokens from
    // state_begin to start are accepted draft tokens of the previous step; rows from state_end on are new draft tokens.
    int slot = 0, state_begin = 0, state_end = 0;
    std::vector<Save> saves;
    int end() const { return start + length; }
};

struct Step {
    std::span<const std::int32_t> tokens, wanted;
    std::vector<Sequence> sequences;
    std::vector<int> positions, sequence_of;  // of each row
    // Whether the row is a prompt token that is not one of the prompt's last kLatePromptTokens tokens.
    bool is_early(int row) const { return positions[row] < sequences[sequence_of[row]].prompt - kLatePromptTokens; }
    bool is_generated(int row) const { return positions[row] >= sequences[sequence_of[row]].prompt; }
    int num_rows(Rows rows) const { return int(rows == Rows::Tokens ? tokens.size() : wanted.size()); }
};

// A table of integers [rows, columns].
struct IntTable {
    const std::int32_t* data;
    std::size_t rows, columns;
    const std::int32_t* row(std::size_t index) const { return data + index * columns; }
};

// A step as the engine describes it; the arrays must outlive the Step. `wanted` holds the output rows. Each sequence
// has a length, a first position, the length of its prompt, and its page table.
struct StepArrays {
    std::span<const std::int32_t> tokens, lengths, starts;
    IntTable pages;
    std::span<const std::int32_t> wanted, prompts;
    // For models with per-sequence states. `moves` [sequences, 3]: slot, state_begin and state_end. `saves` [N, 3]:
    // sequence, position and slot of each snapshot.
    std::optional<IntTable> moves, saves;
};

}  // namespace freedive
