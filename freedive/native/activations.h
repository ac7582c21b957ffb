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

// A linear's input on its way. What is made of its rows lies in the program's scratch memory.
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

// Calls make(row) for each row of a step. A single one is made by each thread for itself, in its own row of memory,
// which is cheaper than a barrier.
template <class Make>
void for_rows(Program& program, int rows, Make&& make) {
    if (rows == 1)
        make(0);
    else
        program.team.for_each(rows, 4, make);
}

// Makes buffer `in` ready; every thread of the team calls it.
Input ready(Program& program, int thread, int in, InputNorm norm, bool quantised);

// Products of one panel and a block of rows: [rows, 32].
struct Products {
    alignas(64) float at[kBlockRows * kPanelRows];
};

// The `count` outputs of a panel plus bias, which may be null.
void add_bias(Products& products, const float* bias, int count, int rows);

}  // namespace freedive
