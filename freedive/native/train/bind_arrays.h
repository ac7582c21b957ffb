// Conversions of NumPy arrays that training's bindings share.
#pragma once

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "arrays.h"

namespace freedive {
template <class T>
using NumpyArray = nanobind::ndarray<T, nanobind::c_contig, nanobind::device::cpu>;
using Floats = NumpyArray<const float>;
using MutableFloats = NumpyArray<float>;
using Ints = NumpyArray<const std::int64_t>;

template <class T>
Array<T> view(const NumpyArray<T>& array) {
    return {array.data(), {array.shape_ptr(), array.shape_ptr() + array.ndim()}};
}
template <class T>
Array<T> view(const std::optional<NumpyArray<T>>& array) {
    return array ? view(*array) : Array<T>{};
}
// Views of a list of arrays, some of which may be missing.
template <class T>
std::vector<Array<T>> views(const std::vector<NumpyArray<T>>& arrays) {
    std::vector<Array<T>> all;
    for (const auto& each : arrays) all.push_back(view(each));
    return all;
}
template <class T>
std::vector<Array<T>> views(const std::vector<std::optional<NumpyArray<T>>>& arrays) {
    std::vector<Array<T>> all;
    for (const auto& each : arrays) all.push_back(view(each));
    return all;
}

}  // namespace freedive
