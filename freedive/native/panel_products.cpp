#include "panel_products.h"

namespace freedive {
namespace {

// Adds the bias to a panel's products [rows, 32].
void add_bias(const Matrix& matrix, int panel, float* products, int rows) {
    const int first = panel * kPanelRows, count = std::min(kPanelRows, matrix.weight.rows - first);
    for (int r = 0; matrix.bias && r < rows; r++)
        for (int i = 0; i < count; i++) products[r * kPanelRows + i] += matrix.bias[first + i];
}

void multiply(const Program& program, const Matrix& matrix, int panel, const void* const* x, int rows, float* out) {
    const Weight& w = matrix.weight;
    program.kernels.linear[int(w.format)](w.panel(panel), w.k, x, rows, out);
}

}  // namespace

void multiply(const Program& program, const Matrix& matrix, int panel, const void* const* x, int rows, Products& out) {
    multiply(program, matrix, panel, x, rows, out.at);
    add_bias(matrix, panel, out.at, rows);
}

namespace {

// The memory of a thread: for the gathered rows of a task, then for its products.
ManyRows task_of(Program& program, int thread, int num_rows) {
    Memory& memory = program.scratch[thread].products;
    constexpr std::size_t products = sizeof(float) * kTaskPanels * kMostRows * kPanelRows;
    if (!memory) memory = Memory(ManyRows::scratch_bytes + products);
    auto* gathered = memory.as<std::uint8_t>();
    return {{}, 0, 0, nullptr, num_rows, gathered, (float*)(gathered + ManyRows::scratch_bytes)};
}

void add_panels(const Weight& weight, int first, int last, ManyRows& task) {
    task.k = weight.k;
    for (int p = first; p < last; p++) task.panels[task.num_panels++] = weight.panel(p);
}

}  // namespace

ManyProducts multiply_in_bf16(Program& program, int thread, const Weight& weight, int first, int last,
                              std::span<const void* const> x) {
    ManyRows task = task_of(program, thread, int(x.size()));
    add_panels(weight, first, last, task);
    task.x = x.data();
    program.kernels.multiply_rows[int(weight.format)](task);
    return {task.out, first, last, task.panel_stride()};
}

// Matrices of one format are multiplied together, since they share the gathered rows.
ManyProducts multiply_rows(Program& program, int thread, const Matrix* matrices, int num_matrices, int first, int last,
                           const RowPointers* x, int count) {
    ManyRows task = task_of(program, thread, count);
    const ManyProducts products{task.out, first, last, task.panel_stride()};
    for (int i = 0; i < num_matrices;) {
        const Weight& w = matrices[i].weight;
        const bool in_bf16 = program.multiplies_in_bf16(w.format);
        task.num_panels = 0, task.x = x[i].data(), task.out = products.panel(i, first);
        for (; i < num_matrices && matrices[i].weight.format == w.format && matrices[i].weight.k == w.k; i++) {
            add_panels(matrices[i].weight, first, last, task);
            for (int p = first; !in_bf16 && p < last; p++)
                for (int r = 0; r < count; r += kBlockRows)
                    multiply(program, matrices[i], p, x[i].data() + r, std::min(kBlockRows, count - r),
                             products.panel(i, p) + r * kPanelRows);
        }
        if (in_bf16) program.kernels.multiply_rows[int(w.format)](task);
    }
    for (int i = 0; i < num_matrices; i++)
        for (int p = first; p < last; p++) add_bias(matrices[i], p, products.panel(i, p), count);
    return products;
}

}  // namespace freedive
