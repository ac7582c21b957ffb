// The input of a linear operation, normed and quantised once for all products that read it.
#pragma once

#include "operations.h"

namespace freedive {

constexpr int kBlockRows = 48;  // activation rows that one pass over a panel computes

// Activations as codes for quantised weights and as floats for other weights; strides in elements.
struct Input {
    const QuantisedGroup* codes;
    const float* floats;
    int codes_stride, floats_stride;

    const void* row(int r, bool quantised) const {
        return quantised ? (const void*)(codes + std::size_t(r) * codes_stride)
                         : (const void*)(floats + std::size_t(r) * floats_stride);
    }
};

// Norms and quantises the rows of a linear operation's input into the program's memory.
class Preparation {
  public:
    Preparation(const Program& program, int thread, int in, InputNorm norm, bool quantised);
    bool is_needed() const { return has_norm() || quantised_; }
    void make(int row) const;
    Input input;

  private:
    bool has_norm() const { return norm_.weight != kNone; }
    const Program& program_;
    const Buffer& from_;
    const InputNorm norm_;
    const bool quantised_;
    float* normed_;
    QuantisedGroup* codes_;
};

// Calls make(row) for each row of a step. If there is only one, every thread makes its own copy in its own row of
// memory, which is cheaper than a barrier.
template <class Make>
void for_rows(Program& program, int rows, Make&& make) {
    if (rows == 1)
        make(0);
    else
        program.team.for_each(rows, 4, make);
}

// Prepares buffer `in` and returns the result. Every thread of the team calls it.
Input ready(Program& program, int thread, int in, InputNorm norm, bool quantised);

// The products of one panel with a block of rows: [rows, 32].
struct Products {
    alignas(64) float at[kBlockRows * kPanelRows];
};

// Adds the bias, which may be null, to the `count` outputs of a panel.
void add_bias(Products& products, const float* bias, int count, int rows);

}  // namespace freedive
