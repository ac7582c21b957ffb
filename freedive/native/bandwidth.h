// The machine's memory bandwidth. It limits decoding, where every weight is read once for each token.
#pragma once

#include <cstddef>

namespace freedive {

// Returns the bytes per second that `num_threads` threads read together from `bytes` of fresh memory in huge pages,
// each its own share from start to end: the best of a few passes. Throws std::bad_alloc.
double read_bandwidth(int num_threads, std::size_t bytes);

}  // namespace freedive
