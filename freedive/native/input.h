// A linear's input, made ready once (norm, codes) for all the products that read it.
#pragma once

#include "operations.h"

namespace freedive {

constexpr int kBlockRows = 48;  // activation rows that share a pass over a panel's results

// Activations in the forms that weights read.
struct Input {
    const QuantisedGroup* codes;
    const float* floats;
    int codes_stride, floats_stride;

    const void* row(int r, bool quantised) const {
        return quantised ? (const void*)(codes + std::size_t(r) * codes_stride)
                         : (const void*)(floats + std::size_t(r) * floats_stride);
    }
};

// Makes buffer `in` ready; every thread of the team calls it. The result lies in the machine's scratch memory.
Input ready(Machine& m, int thread, int in, InputNorm norm, bool quantised);

// Products of one panel and a block of rows: [rows, 32].
struct Products {
    alignas(64) float at[kBlockRows * kPanelRows];
};

// The `count` outputs of a panel plus bias, which may be null.
void add_bias(Products& products, const float* bias, int count, int rows);

}  // namespace freedive
