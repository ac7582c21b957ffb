// The input of a linear operation, normed and quantised once for all products that read it.
#pragma once

#include "operations.h"

namespace freedive {

// Activations as codes for quantised weights, as bfloat16 for rows that are multiplied so, and as floats; strides in
// elements. Codes and bfloat16 share memory.
struct Input {
    const QuantisedGroup* codes;
    const float* floats;
    int codes_stride, floats_stride;

    const void* row(int r, bool packed) const {
        return packed ? (const void*)(codes + std::size_t(r) * codes_stride)
                      : (const void*)(floats + std::size_t(r) * floats_stride);
    }
};

// Which formats the weights have that read an input.
struct Formats {
    bool quantised = false, in_bf16 = false;
    void add(const Program& program, Format format) {
        quantised |= is_quantised(format), in_bf16 |= program.multiplies_in_bf16(format);
    }
};

// Norms and quantises the rows of a linear operation's input into the program's memory.
class Preparation {
  public:
    Preparation(const Program& program, int thread, int in, InputNorm norm, Formats formats);
    bool is_needed() const { return has_norm() || formats_.quantised || formats_.in_bf16; }
    void make(int row) const;
    Input input;

  private:
    bool has_norm() const { return norm_.weight != kNone; }
    const Program& program_;
    const Buffer& from_;
    const InputNorm norm_;
    const Formats formats_;
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
Input ready(Program& program, int thread, int in, InputNorm norm, Formats formats);

}  // namespace freedive
