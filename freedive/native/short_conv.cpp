// Gated short convolutions. A state is the last inputs that the next token still sees.
#include <algorithm>
#include <vector>

#include "operations.h"

namespace freedive {
namespace {

constexpr int kColumns = 256;  // that one task has

}  // namespace

void ShortConv::run(Machine& m, int thread) const {
    const int blocks = (m.buffers[out].width + kColumns - 1) / kColumns;
    m.team.for_each(int(m.step.sequences.size()) * blocks, 1, [&](int i) {
        const int first = i % blocks * kColumns, count = std::min(kColumns, m.buffers[out].width - first);
        convolve(m, m.step.sequences[i / blocks], first, count, m.locals[thread]);
    });
}

void ShortConv::convolve(Machine& m, const Sequence& s, int first, int count, Local& local) const {
    const int dim = m.buffers[out].width, history = kernel - 1, past = s.state_begin - history;
    float *kept = m.states.state(s.slot, state) + first, *drafts = m.states.drafts(s.slot, state) + first;
    const auto row = [&](int position, int third) {
        return m.buffers[in].row(s.row + position - s.start) + third * dim + first;
    };
    local.floats.assign(std::size_t(kernel) * count, 0.0f);
    const float* nothing = local.floats.data();  // before the first token
    float* moved = local.floats.data() + count;  // the state to be
    const auto input = [&](int position) -> const float* {
        if (position < s.state_begin) return s.state_begin ? kept + std::size_t(position - past) * dim : nothing;
        return position < s.start ? drafts + std::size_t(position - s.state_begin) * dim : row(position, 2);
    };

    for (int position = s.start; position < s.end(); position++) {
        float *x = row(position, 2), *to = m.buffers[out].row(s.row + position - s.start) + first;
        const float *b = row(position, 0), *c = row(position, 1);
        for (int i = 0; i < count; i++) x[i] *= b[i];
        std::fill_n(to, count, 0.0f);
        for (int tap = 0; tap < kernel; tap++) {
            const float *seen = input(position - history + tap), *w = m.vectors[taps].data() + tap * dim + first;
            for (int i = 0; i < count; i++) to[i] += w[i] * seen[i];
        }
        if (bias != kNone)
            for (int i = 0; i < count; i++) to[i] += m.vectors[bias][first + i];
        for (int i = 0; i < count; i++) to[i] *= c[i];
    }

    for (const Save& save : s.saves)
        for (int i = 0; i < history; i++)
            std::copy_n(input(save.position - history + i), count,
                        m.states.state(save.slot, state) + std::size_t(i) * dim + first);
    for (int i = 0; i < history; i++) std::copy_n(input(s.state_end - history + i), count, moved + i * count);
    for (int i = 0; i < history; i++) std::copy_n(moved + i * count, count, kept + std::size_t(i) * dim);
    for (int position = s.state_end; position < s.end(); position++)
        std::copy_n(row(position, 2), count, drafts + std::size_t(position - s.state_end) * dim);
}

}  // namespace freedive
