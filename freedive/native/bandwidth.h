// How fast the machine reads memory: the limit of decoding, where every weight is read once a token.
#pragma once

#include <cstddef>

namespace freedive {

// Bytes per second that `num_threads` read together from `bytes` of fresh memory in huge pages, each its own share from
// start to end; the best of a few passes. Throws std::bad_alloc.
double read_bandwidth(int num_threads, std::size_t bytes);

}  // namespace freedive
