// What all of Python's views share: arrays, and checks of what Python says, so that nothing behind them reads or writes
// out of bounds. A value that does not fit is a ValueError, an index beyond the end an IndexError.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "formats/format.h"

namespace freedive {
namespace nb = nanobind;
using namespace nb::literals;

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

inline int index_below(std::int64_t index, std::size_t count, const char* what) {
    if (index < 0 || std::size_t(index) >= count)
        throw std::out_of_range(std::string(what) + " " + std::to_string(index) + " of " + std::to_string(count));
    return int(index);
}

// A number that stands for one of the first `count` enumerators.
template <class Enum>
Enum enumerator(int number, int count) {
    return Enum(index_below(number, count, "choice"));
}
inline Format checked_format(int number) { return enumerator<Format>(number, kNumFormats); }

constexpr int kMaxDim = 1 << 28;  // of a matrix: its bytes are far from what a size can count

// Bytes of a packed matrix [rows, k].
inline std::size_t checked_bytes(Format format, int rows, int k) {
    require(rows >= 0 && rows <= kMaxDim && k >= 0 && k <= kMaxDim, "a matrix has impossible dimensions");
    require(!is_quantised(format) || k % kGroup == 0, "rows of a quantised matrix are not whole groups");
    return panel_bytes(format, k) * num_panels(rows);
}

void bind_program(nb::module_& m);

}  // namespace freedive
