// Gated short convolutions. The state of a sequence holds the last kernel - 1 inputs, which the next token needs.
#include <algorithm>
#include <array>
#include <vector>

#include "operations.h"

namespace freedive {
namespace {

constexpr int kColumns = 256;  // columns of one task
constexpr auto kOnes = [] {
    std::array<float, kColumns> ones;
    ones.fill(1);
    return ones;
}();

}  // namespace

void ShortConv::run(Program& program, int thread) const {
    const int blocks = (program.buffers[out].width + kColumns - 1) / kColumns;
    program.team.for_each(int(program.step.sequences.size()) * blocks, 1, [&](int i) {
        const int first = i % blocks * kColumns, count = std::min(kColumns, program.buffers[out].width - first);
        convolve(program, program.step.sequences[i / blocks], first, count, program.scratch[thread]);
    });
}

void ShortConv::convolve(Program& program, const Sequence& s, int first, int count, ThreadScratch& scratch) const {
    const int dim = program.buffers[out].width, history = kernel - 1, past = s.state_begin - history;
    float *kept = program.states.state(s.slot, state) + first, *drafts = program.states.drafts(s.slot, state) + first;
    const auto row = [&](int position, int third) {
        return program.buffers[in].row(s.row + position - s.start) + (gated ? third * dim : 0) + first;
    };
    scratch.floats.assign(std::size_t(kernel) * count, 0.0f);
    const float* nothing = scratch.floats.data();  // zeros, the inputs before the first token
    float* moved = scratch.floats.data() + count;  // the new state
    const auto input = [&](int position) -> const float* {
        if (position < s.state_begin) return s.state_begin ? kept + std::size_t(position - past) * dim : nothing;
        return position < s.start ? drafts + std::size_t(position - s.state_begin) * dim : row(position, 2);
    };

    for (int position = s.start; position < s.end(); position++) {
        float *x = row(position, 2), *to = program.buffers[out].row(s.row + position - s.start) + first;
        const float *b = row(position, 0), *c = row(position, 1);
        for (int i = 0; gated && i < count; i++) x[i] *= b[i];
        std::fill_n(to, count, 0.0f);
        for (int tap = 0; tap < kernel; tap++) {
            const float *seen = input(position - history + tap), *w = program.vectors[taps].data() + tap * dim + first;
            for (int i = 0; i < count; i++) to[i] += w[i] * seen[i];
        }
        if (bias != kNone)
            for (int i = 0; i < count; i++) to[i] += program.vectors[bias][first + i];
        for (int i = 0; gated && i < count; i++) to[i] *= c[i];
        if (!gated) program.kernels.glu({Activation::Silu, 0}, to, kOnes.data(), (count + 15) / 16 * 16, to);
    }

    for (const Save& save : s.saves)
        for (int i = 0; i < history; i++)
            std::copy_n(input(save.position - history + i), count,
                        program.states.state(save.slot, state) + std::size_t(i) * dim + first);
    for (int i = 0; i < history; i++) std::copy_n(input(s.state_end - history + i), count, moved + i * count);
    for (int i = 0; i < history; i++) std::copy_n(moved + i * count, count, kept + std::size_t(i) * dim);
    for (int position = s.state_end; position < s.end(); position++)
        std::copy_n(row(position, 2), count, drafts + std::size_t(position - s.state_end) * dim);
}

}  // namespace freedive
