// Operations on rows: embedding, selection, rotary tables.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "memory.h"
#include "operations.h"

namespace freedive {

void Embed::run(Program& program, int) const {
    const Weight& w = program.weights[table];
    const Buffer& to = program.buffers[out];
    // The table may be on disk, and a row has bytes on every page of its panel.
    program.team.for_each(program.num_rows(out), 8, [&](int row) {
        expect_reads(w.panel(program.step.tokens[row] / kPanelRows), panel_bytes(w.format, w.k));
    });
    program.team.for_each(program.num_rows(out), 8,
                          [&](int row) { unpack_row(w, program.step.tokens[row], {to.row(row), std::size_t(w.k)}); });
}

void Select::run(Program& program, int) const {
    const Buffer &from = program.buffers[in], &to = program.buffers[out];
    program.team.for_each(program.num_rows(out), 8, [&](int row) {
        std::memcpy(to.row(row), from.row(program.step.wanted[row]), std::size_t(to.stride) * sizeof(float));
    });
}

void RopeTable::run(Program& program, int) const {
    const Buffer& to = program.buffers[out];
    const float* frequency = program.vectors[inv_freq].data();
    const int n = to.width / 2;
    program.team.for_each(program.num_rows(out), 16, [&](int row) {
        float* cosines = to.row(row);
        for (int i = 0; i < n; i++) {
            const float angle = float(program.step.positions[row]) * frequency[i];
            cosines[i] = std::cos(angle) * factor;
            cosines[n + i] = std::sin(angle) * factor;
        }
    });
}

namespace {

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }

// A row of `to` is x times the sigmoid or softplus of its gates, each of which is for as many numbers beside each
// other.
void apply_gates(const Program& program, float (*activation)(float), const Buffer& gates, int row, const float* x,
                 const Buffer& to) {
    const float* logits = gates.row(row);
    float* y = to.row(row);
    const int each = to.width / gates.width;
    if (each == 1 && activation == sigmoid)
        return program.kernels.glu({Activation::Sigmoid, 0}, logits, x, to.stride, y);
    for (int g = 0; g < gates.width; g++) {
        const float gate = activation(logits[g]);
        for (int i = g * each; i < (g + 1) * each; i++) y[i] = x[i] * gate;
    }
}

void scale_by_position(const float* parameters, int position, const float* x, int n, float* y) {
    const float factor = temperature(position + int(parameters[0]), parameters[1], parameters[2]);
    for (int i = 0; i < n; i++) y[i] = x[i] * factor;
}

}  // namespace

void RowOperation::run(Program& program, int) const {
    const Buffer &from = program.buffers[in], &to = program.buffers[out];
    program.team.for_each(program.num_rows(out), 4, [&](int row) {
        const float* x = from.row(row);
        float* y = to.row(row);
        const int n = to.stride;
        const float* added = kind == Add ? program.buffers[other].row(row) : nullptr;
        switch (kind) {
            case Scale:
                for (int i = 0; i < n; i++) y[i] = x[i] * value;
                break;
            case Softcap:
                program.kernels.softcap(x, n, value, y);
                break;
            case Clip:
                for (int i = 0; i < n; i++) y[i] = std::min(std::max(x[i], -value), value);
                break;
            case SigmoidGate:
                apply_gates(program, sigmoid, program.buffers[other], row, x, to);
                break;
            case SoftplusGate:
                apply_gates(program, softplus, program.buffers[other], row, x, to);
                break;
            case ScaleByPosition:
                scale_by_position(program.vectors[other].data(), program.step.positions[row], x, n, y);
                break;
            case Add:
                for (int i = 0; i < n; i++) y[i] = x[i] + added[i];
                break;
        }
    });
}

void RowNorm::run(Program& program, int thread) const {
    const Buffer &from = program.buffers[in], &to = program.buffers[out];
    const float* weights = program.vectors[norm.weight].data();
    std::vector<float>& normed = program.scratch[thread].floats;
    program.team.for_each(program.num_rows(out), 4, [&](int row) {
        normed.resize(to.stride);
        for (int first = 0; first < to.width; first += part)
            program.kernels.rms_norm(from.row(row) + first, weights, part, norm.eps, normed.data() + first);
        for (int first = 0; first < to.width; first += kPanelRows)
            epilogue.write(program, normed.data() + first, to, row, first, std::min(kPanelRows, to.width - first));
        if (after != 1)
            for (int i = 0; i < to.width; i++) to.row(row)[i] *= after;
    });
}

void RowGlu::run(Program& program, int thread) const {
    const Buffer& to = program.buffers[out];
    std::vector<float>& columns = program.scratch[thread].floats;
    program.team.for_each(program.num_rows(out), 4, [&](int row) {
        columns.assign(to.stride, 0.0f);
        std::copy_n(program.buffers[up].row(row) + first, to.width, columns.data());
        program.kernels.glu(glu, program.buffers[gate].row(row), columns.data(), to.stride, to.row(row));
    });
}

}  // namespace freedive
