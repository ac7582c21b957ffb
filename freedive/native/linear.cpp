// Matrix products: an input is made ready once (norm, codes), then panels of 32 outputs are tasks.
#include <algorithm>

#include "input.h"

namespace freedive {

// Rows of the scratch memory belong to rows of the step, but a single row is made ready by each thread for itself,
// which is cheaper than a barrier.
Input ready(Machine& m, int thread, int in, InputNorm norm, bool quantised) {
    const Buffer& from = m.buffers[in];
    const int rows = m.num_rows(in), k = from.width, groups = k / kGroup;
    const int shift = rows == 1 ? m.max_rows + thread : 0;
    float* normed = m.normed.as<float>() + std::size_t(shift) * from.stride;
    QuantisedGroup* codes = m.codes.as<QuantisedGroup>() + std::size_t(shift) * groups;
    const bool has_norm = norm.weight != kNone;
    const auto make = [&](int row) {
        const float* x = from.row(row);
        if (has_norm) {
            float* y = normed + std::size_t(row) * from.stride;
            m.kernels.rms_norm(x, m.vectors[norm.weight].data(), k, norm.eps, y);
            x = y;
        }
        if (quantised) m.kernels.quantise(x, k, m.care(from.rows, row), codes + std::size_t(row) * groups);
    };
    if (rows == 1)
        make(0);
    else if (has_norm || quantised)
        m.team.for_each(rows, 4, make);
    return {codes, has_norm ? normed : from.row(0), groups, from.stride};
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
