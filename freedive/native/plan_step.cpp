// Makes a Step of the engine's arrays and checks every number, so that running it reads and writes only its own memory.
#include "checks.h"
#include "program.h"

namespace freedive {
namespace {

// Reads a row of `moves`: slot, begin and end of the sequence's state.
void plan_move(const States& states, const std::int32_t* move, Sequence& sequence) {
    const auto drafts_fit = [](int count) { return count >= 0 && count <= kMaxDraft; };
    sequence.slot = index_below(move[0], states.num_sequences(), "slot");
    sequence.state_begin = move[1], sequence.state_end = move[2];
    require(sequence.state_begin >= 0 && drafts_fit(sequence.start - sequence.state_begin) &&
                sequence.state_end >= sequence.start && drafts_fit(sequence.end() - sequence.state_end),
            "a state does not move on");
}

void plan_states(const States& states, const IntTable& moves, const IntTable& saves, Step& next) {
    const std::size_t count = next.sequences.size();
    require(moves.rows == count && moves.columns == 3 && saves.columns == 3, "a step says nothing of states");
    for (std::size_t s = 0; s < count; s++) plan_move(states, moves.row(s), next.sequences[s]);
    for (std::size_t i = 0; i < saves.rows; i++) {
        const std::int32_t* save = saves.row(i);
        Sequence& sequence = next.sequences[index_below(save[0], count, "sequence")];
        require(save[1] > sequence.state_begin && save[1] <= sequence.state_end, "a state does not pass there");
        require(save[2] >= states.num_sequences(), "a state is copied over another");
        sequence.saves.push_back({save[1], index_below(save[2], states.num_slots(), "slot")});
    }
}

}  // namespace

Step Program::plan(const StepArrays& from) const {
    const std::size_t count = from.lengths.size(), rows = from.tokens.size();
    require(from.starts.size() == count && from.prompts.size() == count && from.pages.rows == count,
            "a step's arrays differ in length");
    require(rows <= std::size_t(max_rows) && from.wanted.size() <= std::size_t(max_rows), "a step has too many rows");
    Step next;
    next.tokens = from.tokens, next.wanted = from.wanted;
    for (const int token : next.tokens) index_below(token, num_tokens, "token");
    for (const int row : next.wanted) index_below(row, rows, "row");
    std::size_t row = 0;
    for (std::size_t s = 0; s < count; s++) {
        const int length = from.lengths[s], start = from.starts[s];
        require(length >= 0 && start >= 0 && std::size_t(length) <= rows - row, "a step's rows do not add up");
        const std::int64_t needed = (std::int64_t(start) + length + kPageTokens - 1) / kPageTokens;
        require(needed <= std::int64_t(from.pages.columns), "a sequence has too few pages");
        const std::int32_t* pages = from.pages.row(s);
        for (std::int64_t p = 0; p < needed; p++) index_below(pages[p], cache.num_pages(), "page");
        next.sequences.push_back({.row = int(row),
                                  .length = length,
                                  .start = start,
                                  .prompt = from.prompts[s],
                                  .pages = pages,
                                  .saves = {}});
        for (int i = 0; i < length; i++) {
            next.positions.push_back(start + i);
            next.sequence_of.push_back(int(s));
        }
        row += length;
    }
    require(row == rows, "a step's rows do not add up");
    if (states.slot_bytes()) {
        require(from.moves && from.saves, "a step says nothing of states");
        plan_states(states, *from.moves, *from.saves, next);
    }
    return next;
}

}  // namespace freedive
