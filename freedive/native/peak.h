// How fast the machine multiplies: the limit of reading prompts, where a weight that was read serves many tokens.
#pragma once

#include <string>
#include <tuple>
#include <vector>

namespace freedive {

// Of each unit of the machine: the type of its factors ("int8", "bf16", "fp32"), its instruction, and the operations
// per second that `num_threads` reach together on registers, the best of a few passes. A product and its sum are two.
std::vector<std::tuple<std::string, std::string, double>> compute_peaks(int num_threads);

}  // namespace freedive
