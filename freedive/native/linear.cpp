// Matrix products: an input is made ready once (norm, codes), then panels of 32 outputs are tasks.
#include <algorithm>

#include "input.h"

namespace freedive {

Preparation::Preparation(const Machine& m, int thread, int in, InputNorm norm, bool quantised)
    : m_(m), from_(m.buffers[in]), norm_(norm), quantised_(quantised) {
    const std::size_t first = m.num_rows(in) == 1 ? m.own_row(thread) : 0;
    input.codes_stride = from_.width / kGroup;
    input.floats_stride = from_.stride;
    input.codes = codes_ = m.codes.as<QuantisedGroup>() + first * input.codes_stride;
    normed_ = m.normed.as<float>() + first * from_.stride;
    input.floats = has_norm() ? normed_ : from_.row(0);
}

void Preparation::make(int row) const {
    const float* x = from_.row(row);
    if (has_norm()) {
        float* y = normed_ + std::size_t(row) * from_.stride;
        m_.kernels.rms_norm(x, m_.vectors[norm_.weight].data(), from_.width, norm_.eps, y);
        x = y;
    }
    if (!quantised_) return;
    m_.kernels.quantise(x, from_.width, m_.care(from_.rows, row), codes_ + std::size_t(row) * input.codes_stride);
}

Input ready(Machine& m, int thread, int in, InputNorm norm, bool quantised) {
    const Preparation preparation(m, thread, in, norm, quantised);
    if (preparation.is_needed()) for_rows(m, m.num_rows(in), [&](int row) { preparation.make(row); });
    return preparation.input;
}

void add_bias(Products& products, const float* bias, int count, int rows) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < count; i++) products.at[r * kPanelRows + i] += bias[i];
}

namespace {

void multiply(Machine& m, const Input& input, const Linear::Output& o, int panel, int row, int rows, Products& out) {
    const Weight& w = m.weights[o.weight];
    const void* x[kBlockRows];
    for (int r = 0; r < rows; r++) x[r] = input.row(row + r, is_quantised(w.format));
    m.kernels.linear[int(w.format)](w.panel(panel), w.k, x, rows, out.at);
    if (o.bias != kNone) add_bias(out, m.vectors[o.bias].data() + panel * kPanelRows, kPanelRows, rows);
}

// Calls block(panel, row, rows) for all panels and blocks of rows, panels being shared out over the team.
template <class Block>
void for_blocks(Machine& m, int panels, int num_rows, Block&& block) {
    const int grain = std::max(1, panels / (m.team.size() * 4));
    m.team.for_each(panels, grain, [&](int panel) {
        for (int row = 0; row < num_rows; row += kBlockRows) block(panel, row, std::min(kBlockRows, num_rows - row));
    });
}

}  // namespace

void Epilogue::write(const Machine& m, const float* x, const Buffer& to, int row, int first, int count) const {
    const std::size_t at = std::size_t(row) * to.stride + first;
    float values[kPanelRows];
    for (int i = 0; i < count; i++) values[i] = factor * x[i];
    for (const int residual : residuals) {
        const float* before = m.buffers[residual].memory.as<float>() + at;
        for (int i = 0; i < count; i++) values[i] += before[i];
    }
    float* out = to.memory.as<float>() + at;
    for (int i = 0; i < count; i++) out[i] = values[i];
}

void Linear::run(Machine& m, int thread) const {
    bool quantised = false;
    int panels = 0;
    for (const Output& o : outputs) {
        quantised |= is_quantised(m.weights[o.weight].format);
        panels += num_panels(m.weights[o.weight].rows);
    }
    const Input input = ready(m, thread, in, norm, quantised);
    for_blocks(m, panels, m.num_rows(in), [&](int panel, int row, int rows) {
        const Output* o = outputs.data();
        for (int n; panel >= (n = num_panels(m.weights[o->weight].rows)); o++) panel -= n;
        Products products;
        multiply(m, input, *o, panel, row, rows, products);
        for (int r = 0; r < rows; r++)
            epilogue.write(m, products.at + r * kPanelRows, m.buffers[o->out], row + r, panel * kPanelRows, kPanelRows);
    });
}

void GluLinear::run(Machine& m, int thread) const {
    const bool quantised = is_quantised(m.weights[gate.weight].format) || is_quantised(m.weights[up.weight].format);
    const Input input = ready(m, thread, in, norm, quantised);
    const Buffer& out = m.buffers[gate.out];
    for_blocks(m, num_panels(m.weights[gate.weight].rows), m.num_rows(in), [&](int panel, int row, int rows) {
        Products a, b;
        multiply(m, input, gate, panel, row, rows, a);
        multiply(m, input, up, panel, row, rows, b);
        m.kernels.glu(glu, a.at, b.at, rows * kPanelRows, a.at);
        for (int r = 0; r < rows; r++)
            std::copy_n(a.at + r * kPanelRows, kPanelRows, out.row(row + r) + panel * kPanelRows);
    });
}

}  // namespace freedive
