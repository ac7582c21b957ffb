// Products of float matrices: rows by a packed matrix, and columns by columns. Sums have one order, whatever the
// threads and the rows beside.
#pragma once

#include <span>

#include "../isa/train.h"
#include "../threads.h"
#include "arena.h"

namespace freedive {

// A right factor [k, columns] in panels. It is made of `source`: as it is, or transposed.
struct Panels {
    View source;
    int k, columns;
    bool transposed;
    float* data = nullptr;

    int count(const TrainKernels& kernels) const { return (columns + kernels.tile_columns - 1) / kernels.tile_columns; }
    std::size_t size(const TrainKernels& kernels) const {
        return std::size_t(count(kernels)) * k * kernels.tile_columns;
    }
    void pack(const TrainKernels& kernels, int panel) const;
};

// What rows of `in` numbers are multiplied by, given a weight [out, in]; and what their gradients are.
inline Panels forward_panels(const float* weight, int out, int in) { return {{weight, in}, in, out, true}; }
inline Panels backward_panels(const float* weight, int out, int in) { return {{weight, in}, out, in, false}; }

// One thread packs a factor that has memory, its rows in order.
void pack(const TrainKernels& kernels, const Panels& factor);
// Inside a job: all threads pack all panels of factors that have memory.
void pack(const TrainKernels& kernels, Team& team, std::span<const Panels> factors);

// out [num_rows, columns] = left [num_rows, inner] right, or that added; of `right` the first `inner` rows.
void multiply(const TrainKernels& kernels, View left, int num_rows, const Panels& right, MutableView out, bool adds,
              int inner);
inline void multiply(const TrainKernels& kernels, View left, int num_rows, const Panels& right, MutableView out,
                     bool adds) {
    multiply(kernels, left, num_rows, right, out, adds, right.k);
}

// out [width, columns] = left^T right, where left has k rows (all of them in order), or that added.
void multiply_columns(const TrainKernels& kernels, View left, int width, const Panels& right, MutableView out,
                      bool adds);

// Likewise of num_rows rows each that are not packed yet: out [width, right_width].
void multiply_outer(const TrainKernels& kernels, View left, int width, View right, int right_width, int num_rows,
                    MutableView out, bool adds, Arena& arena);

}  // namespace freedive
