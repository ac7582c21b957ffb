// Matrix products. The input is normed and quantised once; then each task computes panels of 32 outputs.
#include <algorithm>

#include "activations.h"
#include "panel_products.h"

namespace freedive {

Preparation::Preparation(const Program& program, int thread, int in, InputNorm norm, Formats formats)
    : program_(program), from_(program.buffers[in]), norm_(norm), formats_(formats) {
    const std::size_t first = program.num_rows(in) == 1 ? program.own_row(thread) : 0;
    input.codes_stride = from_.stride / kGroup;
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
    QuantisedGroup* packed = codes_ + std::size_t(row) * input.codes_stride;
    if (formats_.in_bf16 && program_.is_bf16(from_.rows, row))
        program_.kernels.to_bf16(x, from_.width, (std::uint16_t*)packed);
    else if (formats_.quantised)
        program_.kernels.quantise(x, from_.width, program_.outlier_threshold(from_.rows, row), packed);
}

Input ready(Program& program, int thread, int in, InputNorm norm, Formats formats) {
    const Preparation preparation(program, thread, in, norm, formats);
    if (preparation.is_needed()) for_rows(program, program.num_rows(in), [&](int row) { preparation.make(row); });
    return preparation.input;
}

namespace {

Matrix matrix_of(const Program& program, const Linear::Output& o) {
    return {program.weights[o.weight], o.bias == kNone ? nullptr : program.vectors[o.bias].data()};
}

// Calls work(i, first, last) for ranges of at most `width` panels of weights i, which are the team's tasks.
template <class Count, class Work>
void for_panels(Program& program, int num_weights, int width, Count&& count, Work&& work) {
    const auto ranges = [&](int i) { return (count(i) + width - 1) / width; };
    int tasks = 0;
    for (int i = 0; i < num_weights; i++) tasks += ranges(i);
    program.team.for_each(tasks, std::max(1, tasks / (program.team.size() * 4)), [&](int task) {
        int i = 0;
        for (; task >= ranges(i); i++) task -= ranges(i);
        work(i, task * width, std::min((task + 1) * width, count(i)));
    });
}

// The panels of a task, which share each block of rows: one if there is a single block, else at most `most`, and few
// enough to keep all threads busy.
int task_panels(const Program& program, const RowSplit& split, int num_panels, int most) {
    if (split.in_bf16.empty() && split.others.size() <= kBlockRows) return 1;
    const int tasks = program.team.size() * (split.in_bf16.empty() ? 8 : 4);
    return std::clamp(num_panels / tasks, 1, most);
}

void multiply(const Program& program, const Matrix& matrix, int panel, const Input& input, std::span<const int> rows,
              Products& out) {
    const void* x[kBlockRows];
    for (std::size_t r = 0; r < rows.size(); r++) x[r] = input.row(rows[r], is_quantised(matrix.weight.format));
    multiply(program, matrix, panel, x, int(rows.size()), out);
}

template <std::size_t N>
ManyProducts multiply_rows(Program& program, int thread, const Matrix (&matrices)[N], int first, int last,
                           const Input& input, std::span<const int> rows) {
    return multiply_rows(program, thread, matrices, first, last, int(rows.size()),
                         [&](int r, bool packed) { return input.row(rows[r], packed); });
}

// Inlined, so that the loops over a whole panel are unrolled.
inline __attribute__((always_inline)) void write_row(const Epilogue& epilogue, const Program& program, const float* x,
                                                     const Buffer& to, int row, int first, int count) {
    const std::size_t at = std::size_t(row) * to.stride + first;
    float values[kPanelRows];
    for (int i = 0; i < count; i++) values[i] = epilogue.factor * x[i];
    for (const int residual : epilogue.residuals) {
        const float* before = program.buffers[residual].memory.as<float>() + at;
        for (int i = 0; i < count; i++) values[i] += before[i];
    }
    float* out = to.memory.as<float>() + at;
    for (int i = 0; i < count; i++) out[i] = values[i];
}

}  // namespace

void Epilogue::write(const Program& program, const float* x, const Buffer& to, int row, int first, int count) const {
    write_row(*this, program, x, to, row, first, count);
}

void Epilogue::write_panel(const Program& program, const float* products, const Buffer& to, std::span<const int> rows,
                           int panel) const {
    for (std::size_t r = 0; r < rows.size(); r++)
        write_row(*this, program, products + r * kPanelRows, to, rows[r], panel * kPanelRows, kPanelRows);
}

void Linear::run(Program& program, int thread) const {
    Formats formats;
    int panels = 0;
    const auto panels_of = [&](int i) { return num_panels(program.weights[outputs[i].weight].rows); };
    for (int i = 0; i < int(outputs.size()); i++) {
        formats.add(program, program.weights[outputs[i].weight].format);
        panels += panels_of(i);
    }
    const bool exact = std::ranges::any_of(outputs, [&](const Output& o) { return program.buffers[o.out].exact; });
    if (exact) formats.in_bf16 = false;
    const Input input = ready(program, thread, in, norm, formats);
    const RowSplit split = program.split(in, exact);
    const int width = task_panels(program, split, panels, kTaskPanels);
    for_panels(program, int(outputs.size()), width, panels_of, [&](int i, int first, int last) {
        const Matrix matrices[] = {matrix_of(program, outputs[i])};
        const Buffer& out = program.buffers[outputs[i].out];
        for_blocks(split.in_bf16, kMostRows, [&](std::span<const int> rows) {
            const ManyProducts products = multiply_rows(program, thread, matrices, first, last, input, rows);
            for (std::size_t r = 0; r < rows.size(); r++)
                for (int panel = first; panel < last; panel++)
                    epilogue.write_panel(program, products.panel(0, panel) + r * kPanelRows, out, rows.subspan(r, 1),
                                         panel);
        });
        for_blocks(split.others, kBlockRows, [&](std::span<const int> rows) {
            for (int panel = first; panel < last; panel++) {
                Products products;
                multiply(program, matrices[0], panel, input, rows, products);
                epilogue.write_panel(program, products.at, out, rows, panel);
            }
        });
    });
}

void GluLinear::run(Program& program, int thread) const {
    const Matrix matrices[] = {matrix_of(program, gate), matrix_of(program, up)};
    Formats formats;
    for (const Matrix& matrix : matrices) formats.add(program, matrix.weight.format);
    const Input input = ready(program, thread, in, norm, formats);
    const RowSplit split = program.split(in);
    const int panels = num_panels(matrices[0].weight.rows);
    const auto write = [&](int panel, std::span<const int> rows, float* a, const float* b) {
        program.kernels.glu(glu, a, b, int(rows.size()) * kPanelRows, a);
        for (std::size_t r = 0; r < rows.size(); r++)
            std::copy_n(a + r * kPanelRows, kPanelRows, program.buffers[gate.out].row(rows[r]) + panel * kPanelRows);
    };
    const int width = task_panels(program, split, panels, kTaskPanels / 2);
    for_panels(
        program, 1, width, [&](int) { return panels; },
        [&](int, int first, int last) {
            for_blocks(split.in_bf16, kMostRows, [&](std::span<const int> rows) {
                const ManyProducts products = multiply_rows(program, thread, matrices, first, last, input, rows);
                for (int panel = first; panel < last; panel++)
                    write(panel, rows, products.panel(0, panel), products.panel(1, panel));
            });
            for_blocks(split.others, kBlockRows, [&](std::span<const int> rows) {
                for (int panel = first; panel < last; panel++) {
                    Products a, b;
                    multiply(program, matrices[0], panel, input, rows, a);
                    multiply(program, matrices[1], panel, input, rows, b);
                    write(panel, rows, a.at, b.at);
                }
            });
        });
}

}  // namespace freedive
