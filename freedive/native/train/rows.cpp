// Arithmetic on rows, in blocks of them.
#include "training.h"

namespace freedive {
namespace {
constexpr int kBlockRows = 128;
int blocks_of(int rows) { return (rows + kBlockRows - 1) / kBlockRows; }
}  // namespace

void Training::rms_norm(NormShape shape, const float* x, const float* weight, float* y) {
    const std::lock_guard lock(one_at_a_time_);
    const auto run_row = [&](std::ptrdiff_t first) {
        kernels_.rms_norm(x + first, weight, shape.dim, shape.eps, y + first);
    };
    team_.run([&](int) {
        team_.for_each(blocks_of(shape.rows), 1, [&](int block) {
            const int end = std::min(shape.rows, (block + 1) * kBlockRows);
            for (int row = block * kBlockRows; row < end; row++) run_row(std::ptrdiff_t(row) * shape.dim);
        });
    });
}

void Training::rms_norm_backward(NormShape shape, const float* x, const float* weight, const float* d_y, float* d_x,
                                 float* d_weight) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const int blocks = blocks_of(shape.rows), dim = shape.dim;
    float* parts = shared_.take(std::size_t(blocks) * dim);  // of d_weight, by block
    std::fill_n(parts, std::size_t(blocks) * dim, 0.0f);
    team_.run([&](int) {
        team_.for_each(blocks, 1, [&](int block) {
            const int end = std::min(shape.rows, (block + 1) * kBlockRows);
            for (int row = block * kBlockRows; row < end; row++) {
                const std::ptrdiff_t first = std::ptrdiff_t(row) * dim;
                kernels_.rms_norm_gradient(x + first, weight, d_y + first, dim, shape.eps, d_x + first,
                                           parts + std::ptrdiff_t(block) * dim);
            }
        });
    });
    std::fill_n(d_weight, dim, 0.0f);
    for (int block = 0; block < blocks; block++)
        for (int i = 0; i < dim; i++) d_weight[i] += parts[std::ptrdiff_t(block) * dim + i];
}

}  // namespace freedive
