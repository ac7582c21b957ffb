// The machine's peak multiplication rate. It limits prefill, where each weight that is read serves many tokens.
#pragma once

#include <string>
#include <tuple>
#include <vector>

namespace freedive {

// Returns for each unit of the machine the type of its factors ("int8", "bf16", "fp32"), its instruction, and the
// operations per second that `num_threads` threads reach together on registers: the best of a few passes. A
// multiply-add counts as two operations.
std::vector<std::tuple<std::string, std::string, double>> compute_peaks(int num_threads);

}  // namespace freedive
