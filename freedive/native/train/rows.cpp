// RMS norm of rows, a block of rows in each task.
#include "training.h"

namespace freedive {
namespace {
constexpr int kBlockRows = 128;
int blocks_of(int rows) { return (rows + kBlockRows - 1) / kBlockRows; }

struct NormShape {
    int rows, dim;
};

NormShape checked_shape(const FloatArray& x, const FloatArray& weight, const auto& y) {
    require_num_dims(x, 2);
    require_shape(weight, {x.shape[1]}), require_shape(y, {x.shape[0], x.shape[1]});
    return {int(x.shape[0]), int(x.shape[1])};
}
}  // namespace

void Training::rms_norm(const FloatArray& x, const FloatArray& weight, float eps, const MutableFloatArray& y) {
    const NormShape shape = checked_shape(x, weight, y);
    const std::lock_guard lock(one_at_a_time_);
    const auto run_row = [&](std::ptrdiff_t first) {
        kernels_.rms_norm(x.data + first, weight.data, shape.dim, eps, y.data + first);
    };
    team_.run([&](int) {
        team_.for_each(blocks_of(shape.rows), 1, [&](int block) {
            const int end = std::min(shape.rows, (block + 1) * kBlockRows);
            for (int row = block * kBlockRows; row < end; row++) run_row(std::ptrdiff_t(row) * shape.dim);
        });
    });
}

void Training::rms_norm_backward(const FloatArray& x, const FloatArray& weight, float eps, const FloatArray& d_y,
                                 const MutableFloatArray& d_x, const MutableFloatArray& d_weight) {
    const NormShape shape = checked_shape(x, weight, d_y);
    require(d_x.shape == x.shape && d_weight.shape == weight.shape, "an array has the wrong shape");
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const int blocks = blocks_of(shape.rows), dim = shape.dim;
    float* parts = shared_.take(std::size_t(blocks) * dim);  // d_weight of each block
    std::fill_n(parts, std::size_t(blocks) * dim, 0.0f);
    team_.run([&](int) {
        team_.for_each(blocks, 1, [&](int block) {
            const int end = std::min(shape.rows, (block + 1) * kBlockRows);
            for (int row = block * kBlockRows; row < end; row++) {
                const std::ptrdiff_t first = std::ptrdiff_t(row) * dim;
                kernels_.rms_norm_gradient(x.data + first, weight.data, d_y.data + first, dim, eps, d_x.data + first,
                                           parts + std::ptrdiff_t(block) * dim);
            }
        });
    });
    std::fill_n(d_weight.data, dim, 0.0f);
    for (int block = 0; block < blocks; block++)
        for (int i = 0; i < dim; i++) d_weight.data[i] += parts[std::ptrdiff_t(block) * dim + i];
}

}  // namespace freedive
