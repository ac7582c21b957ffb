// Operations on rows: embedding, selection, rotary tables.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "operations.h"

namespace freedive {

void Embed::run(Machine& m, int) const {
    const Weight& w = m.weights[table];
    const Buffer& to = m.buffers[out];
    m.team.for_each(m.num_rows(out), 8, [&](int row) { unpack_row(w, m.step.tokens[row], to.row(row)); });
}

void Select::run(Machine& m, int) const {
    const Buffer &from = m.buffers[in], &to = m.buffers[out];
    m.team.for_each(m.num_rows(out), 8, [&](int row) {
        std::memcpy(to.row(row), from.row(m.step.wanted[row]), std::size_t(to.stride) * sizeof(float));
    });
}

void RopeTable::run(Machine& m, int) const {
    const Buffer& to = m.buffers[out];
    const float* frequency = m.vectors[inv_freq].data();
    const int n = to.width / 2;
    m.team.for_each(m.num_rows(out), 16, [&](int row) {
        float* cosines = to.row(row);
        for (int i = 0; i < n; i++) {
            const float angle = float(m.step.positions[row]) * frequency[i];
            cosines[i] = std::cos(angle) * factor;
            cosines[n + i] = std::sin(angle) * factor;
        }
    });
}

void RowOperation::run(Machine& m, int) const {
    const Buffer &from = m.buffers[in], &to = m.buffers[out];
    m.team.for_each(m.num_rows(out), 4, [&](int row) {
        const float* x = from.row(row);
        float* y = to.row(row);
        const int n = to.stride;
        const float gate = kind == Gate ? 1 / (1 + std::exp(-m.buffers[other].row(row)[0])) : 0;
        const float* added = kind == Add ? m.buffers[other].row(row) : nullptr;
        switch (kind) {
            case Norm:
                m.kernels.rms_norm(x, m.vectors[other].data(), to.width, value, y);
                break;
            case Scale:
                for (int i = 0; i < n; i++) y[i] = x[i] * value;
                break;
            case Softcap:
                m.kernels.softcap(x, n, value, y);
                break;
            case Clip:
                for (int i = 0; i < n; i++) y[i] = std::min(std::max(x[i], -value), value);
                break;
            case Gate:
                for (int i = 0; i < n; i++) y[i] = x[i] * gate;
                break;
            case Add:
                for (int i = 0; i < n; i++) y[i] = x[i] + added[i];
                break;
        }
    });
}

}  // namespace freedive
