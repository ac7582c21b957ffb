// Checks of what comes from outside, so that nothing behind them reads or writes out of bounds. A value that does not
// fit is std::invalid_argument (in Python a ValueError), an index beyond the end std::out_of_range (an IndexError).
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "formats/format.h"

namespace freedive {

inline void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

inline int index_below(std::int64_t index, std::size_t count, const char* what) {
    if (index < 0 || std::size_t(index) >= count)
        throw std::out_of_range(std::string(what) + " " + std::to_string(index) + " of " + std::to_string(count));
    return int(index);
}

constexpr int kMaxDim = 1 << 28;  // of a matrix: its bytes are far from what a size can count

// Bytes of a packed matrix [rows, k].
inline std::size_t checked_bytes(Format format, int rows, int k) {
    require(rows >= 0 && rows <= kMaxDim && k >= 0 && k <= kMaxDim, "a matrix has impossible dimensions");
    require(!is_quantised(format) || k % kGroup == 0, "rows of a quantised matrix are not whole groups");
    return panel_bytes(format, k) * num_panels(rows);
}

// A packed matrix [rows, k] whose bytes are as many as its shape needs.
inline Weight checked_weight(Format format, int rows, int k, std::span<const std::uint8_t> packed) {
    require(packed.size() == checked_bytes(format, rows, k), "packed weight has the wrong size");
    return {format, rows, k, packed.data()};
}

}  // namespace freedive
