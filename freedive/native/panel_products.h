// Products of panels of a weight with rows, as tasks of a thread compute them.
#pragma once

#include <algorithm>
#include <array>

#include "program.h"

namespace freedive {

constexpr int kBlockRows = 48;            // rows that one pass over a panel computes
constexpr int kTaskPanels = kMostPanels;  // most panels of a task, which share a block of rows

// The products of one panel with a block of rows: [rows, 32].
struct Products {
    alignas(64) float at[kBlockRows * kPanelRows];
};

// Multiplies one panel by up to kBlockRows rows.
void multiply(const Program& program, const Matrix& matrix, int panel, const void* const* x, int rows, Products& out);

// The products of panels [first, last) of one or two matrices with rows of a prompt, in the memory of a thread.
struct ManyProducts {
    float* at;
    int first, last;
    std::size_t stride;  // of a panel
    float* panel(int matrix, int p) const { return at + (matrix * (last - first) + p - first) * stride; }
};

// The memory of up to kMostRows row pointers.
using RowPointers = std::array<const void*, kMostRows>;

// Multiplies panels [first, last) of `matrices`, together at most kTaskPanels, by up to kMostRows rows of a prompt: in
// bfloat16, or as floats if the format of a matrix is not multiplied so. `row(r, packed)` is row r for one or the
// other.
template <std::size_t N, class Row>
ManyProducts multiply_rows(Program& program, int thread, const Matrix (&matrices)[N], int first, int last, int count,
                           Row&& row) {
    RowPointers x[N];
    for (std::size_t i = 0; i < N; i++)
        for (int r = 0; r < count; r++) x[i][r] = row(r, program.multiplies_in_bf16(matrices[i].weight.format));
    return multiply_rows(program, thread, matrices, N, first, last, x, count);
}
ManyProducts multiply_rows(Program& program, int thread, const Matrix* matrices, int num_matrices, int first, int last,
                           const RowPointers* x, int count);

// Multiplies panels [first, last), at most kTaskPanels, by rows of bfloat16.
ManyProducts multiply_in_bf16(Program& program, int thread, const Weight& weight, int first, int last,
                              std::span<const void* const> x);

// Calls work(block) for all items, at most `most` at a time.
template <class Item, class Work>
void for_blocks(std::span<const Item> items, std::size_t most, Work&& work) {
    for (std::size_t first = 0; first < items.size(); first += most)
        work(items.subspan(first, std::min(most, items.size() - first)));
}

}  // namespace freedive
