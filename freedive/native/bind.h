// Types of arrays that the Python bindings share, and one function that registers each domain.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <span>

#include "checks.h"

namespace freedive {
namespace nb = nanobind;
using namespace nb::literals;

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline std::span<const std::uint8_t> view(const Bytes& a) { return {a.data(), a.size()}; }
inline std::span<const float> view(const Floats& a) { return {a.data(), a.size()}; }
inline std::span<const std::int32_t> view(const Ints& a) { return {a.data(), a.size()}; }

void bind_formats(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_machine(nb::module_& m);
void bind_program(nb::module_& m);

}  // namespace freedive
