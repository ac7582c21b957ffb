// Matrix products. The input is normed and quantised once; then each task computes panels of 32 outputs.
#include <algorithm>

#include "activations.h"

namespace freedive {

Preparation::Preparation(const Program& program, int thread, int in, InputNorm norm, bool quantised)
    : program_(program), from_(program.buffers[in]), norm_(norm), quantised_(quantised) {
    const std::size_t first = program.num_rows(in) == 1 ? program.own_row(thread) : 0;
    input.codes_stride = from_.width / kGroup;
    input.floats_stride = from_.stride;
    input.codes = codes_ = program.codes.as<QuantisedGroup>() + first * input.codes_stride;
    normed_ = program.normed.as<float>() + first * from_.stride;
    input.floats = has_norm() ? normed_ : from_.row(0);
}

void Preparation::make(int row) const {
    const float* x = from_.row(row);
    if (has_norm()) {
        float* y = normed_ + std::size_t(row) * from_.stride;
        program_.kernels.rms_norm(x, program_.vectors[norm_.weight].data(), from_.width, norm_.eps, y);
        x = y;
    }
    if (!quantised_) return;
    program_.kernels.quantise(x, from_.width, program_.outlier_threshold(from_.rows, row),
                              codes_ + std::size_t(row) * input.codes_stride);
}

Input ready(Program& program, int thread, int in, InputNorm norm, bool quantised) {
    const Preparation preparation(program, thread, in, norm, quantised);
    if (preparation.is_needed()) for_rows(program, program.num_rows(in), [&](int row) { preparation.make(row); });
    return preparation.input;
}

void add_bias(Products& products, const float* bias, int count, int rows) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < count; i++) products.at[r * kPanelRows + i] += bias[i];
}

namespace {

void multiply(Program& program, const Input& input, const Linear::Output& o, int panel, int row, int rows,
              Products& out) {
    const Weight& w = program.weights[o.weight];
    const void* x[kBlockRows];
    for (int r = 0; r < rows; r++) x[r] = input.row(row + r, is_quantised(w.format));
    program.kernels.linear[int(w.format)](w.panel(panel), w.k, x, rows, out.at);
    if (o.bias != kNone) add_bias(out, program.vectors[o.bias].data() + panel * kPanelRows, kPanelRows, rows);
}

// Calls block(panel, row, rows) for all panels and blocks of rows; the panels are the team's tasks.
template <class Block>
void for_blocks(Program& program, int panels, int num_rows, Block&& block) {
    const int grain = std::max(1, panels / (program.team.size() * 4));
    program.team.for_each(panels, grain, [&](int panel) {
        for (int row = 0; row < num_rows; row += kBlockRows) block(panel, row, std::min(kBlockRows, num_rows - row));
    });
}

}  // namespace

void Epilogue::write(const Program& program, const float* x, const Buffer& to, int row, int first, int count) const {
    const std::size_t at = std::size_t(row) * to.stride + first;
    float values[kPanelRows];
    for (int i = 0; i < count; i++) values[i] = factor * x[i];
    for (const int residual : residuals) {
        const float* before = program.buffers[residual].memory.as<float>() + at;
        for (int i = 0; i < count; i++) values[i] += before[i];
    }
    float* out = to.memory.as<float>() + at;
    for (int i = 0; i < count; i++) out[i] = values[i];
}

void Linear::run(Program& program, int thread) const {
    bool quantised = false;
    int panels = 0;
    for (const Output& o : outputs) {
        quantised |= is_quantised(program.weights[o.weight].format);
        panels += num_panels(program.weights[o.weight].rows);
    }
    const Input input = ready(program, thread, in, norm, quantised);
    for_blocks(program, panels, program.num_rows(in), [&](int panel, int row, int rows) {
        const Output* o = outputs.data();
        for (int n; panel >= (n = num_panels(program.weights[o->weight].rows)); o++) panel -= n;
        Products products;
        multiply(program, input, *o, panel, row, rows, products);
        for (int r = 0; r < rows; r++)
            epilogue.write(program, products.at + r * kPanelRows, program.buffers[o->out], row + r, panel * kPanelRows,
                           kPanelRows);
    });
}

void GluLinear::run(Program& program, int thread) const {
    const bool quantised =
        is_quantised(program.weights[gate.weight].format) || is_quantised(program.weights[up.weight].format);
    const Input input = ready(program, thread, in, norm, quantised);
    const Buffer& out = program.buffers[gate.out];
    for_blocks(program, num_panels(program.weights[gate.weight].rows), program.num_rows(in),
               [&](int panel, int row, int rows) {
                   Products a, b;
                   multiply(program, input, gate, panel, row, rows, a);
                   multiply(program, input, up, panel, row, rows, b);
                   program.kernels.glu(glu, a.at, b.at, rows * kPanelRows, a.at);
                   for (int r = 0; r < rows; r++)
                       std::copy_n(a.at + r * kPanelRows, kPanelRows, out.row(row + r) + panel * kPanelRows);
               });
}

}  // namespace freedive
