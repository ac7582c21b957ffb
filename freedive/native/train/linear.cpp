// Linear layers: blocks of rows by the whole weight; the weight's gradient by bands of its rows.
#include "training.h"

namespace freedive {
namespace {
constexpr int kBlockRows = 192;
}

void Training::linear(LinearShape shape, const float* x, const float* weight, float* y) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    Panels panels = forward_panels(weight, shape.out, shape.in);
    panels.data = shared_.take(panels.size(products_));
    team_.run([&](int thread) {
        pack(products_, team_, {&panels, 1});
        team_.for_each((shape.rows + kBlockRows - 1) / kBlockRows, 1, [&](int block) {
            const std::ptrdiff_t row = block * kBlockRows;
            const int count = std::min(kBlockRows, shape.rows - int(row));
            own_[thread].multiply({x + row * shape.in, shape.in}, count, panels, {y + row * shape.out, shape.out},
                                  false);
        });
    });
}

void Training::linear_backward(LinearShape shape, const float* x, const float* weight, const float* d_y, float* d_x,
                               float* d_weight) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    Panels panels = backward_panels(weight, shape.out, shape.in);
    panels.data = shared_.take(panels.size(products_));
    const int blocks = (shape.rows + kBlockRows - 1) / kBlockRows, bands = std::min(team_.size(), shape.out);
    team_.run([&](int thread) {
        pack(products_, team_, {&panels, 1});
        team_.for_each(d_x ? blocks : 0, 1, [&](int block) {
            const std::ptrdiff_t row = block * kBlockRows;
            const int count = std::min(kBlockRows, shape.rows - int(row));
            own_[thread].multiply({d_y + row * shape.out, shape.out}, count, panels, {d_x + row * shape.in, shape.in},
                                  false);
        });
        team_.for_each(d_weight ? bands : 0, 1, [&](int band) {
            const int begin = shape.out * band / bands, end = shape.out * (band + 1) / bands;
            own_[thread].multiply_outer({d_y + begin, shape.out}, end - begin, {x, shape.in}, shape.in, shape.rows,
                                        {d_weight + std::ptrdiff_t(begin) * shape.in, shape.in}, false);
        });
    });
}

}  // namespace freedive
