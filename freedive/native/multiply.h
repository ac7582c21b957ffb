// One matrix product outside a program, for tests and benchmarks of kernels.
#pragma once

#include <span>

#include "isa/kernels.h"

namespace freedive {

// Multiplies x [rows, k] by a packed weight; out [panels, rows, 32] holds each panel's results. `in_bf16` selects
// the products of rows of prompts, which only levels with tiles have. Throws
// std::invalid_argument if the sizes do not match.
void multiply(const Kernels& kernels, const Weight& weight, int rows, std::span<const float> x, bool in_bf16,
              std::span<float> out);

}  // namespace freedive
