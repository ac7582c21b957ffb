// Arrays that training is called with, whose shapes each operation checks before it starts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "../checks.h"

namespace freedive {

// A contiguous array that the caller owns. An optional array that is missing has an empty shape.
template <class T>
struct Array {
    T* data = nullptr;
    std::vector<std::size_t> shape;

    bool is_given() const { return !shape.empty(); }
    std::size_t size() const {
        std::size_t product = 1;
        for (const std::size_t dim : shape) product *= dim;
        return product;
    }
};
using FloatArray = Array<const float>;
using MutableFloatArray = Array<float>;
using IntArray = Array<const std::int64_t>;

template <class T>
void require_shape(const Array<T>& array, std::initializer_list<std::size_t> shape) {
    require(std::ranges::equal(array.shape, shape), "an array has the wrong shape");
}
template <class T>
void require_num_dims(const Array<T>& array, std::size_t count) {
    require(array.shape.size() == count, "an array has the wrong shape");
}

}  // namespace freedive
