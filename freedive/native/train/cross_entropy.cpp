// The loss and its gradients at once, so that logits live no longer than it takes to make them.
#include "training.h"

namespace freedive {
namespace {
constexpr int kBlockRows = 48, kChunkRows = 20 * kBlockRows;  // of a task, and between two additions to d_head
constexpr int kSpace = 48;  // between rows of logits: a power of two apart they would crowd into few sets of the cache
}  // namespace

double Training::cross_entropy(CrossEntropyShape shape, const float* x, const float* head, const std::int64_t* targets,
                               const float* weights, float* d_x, float* d_head) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const auto [rows, hidden, vocab] = shape;
    Panels panels[] = {forward_panels(head, vocab, hidden), backward_panels(head, vocab, hidden)};
    for (Panels& each : panels) each.data = shared_.take(each.size(products_));
    float* losses = shared_.take(rows);
    const std::ptrdiff_t stride = vocab + kSpace;
    float* logits = shared_.take(std::min(rows, kChunkRows) * stride);
    const int bands = std::min(vocab, team_.size());
    // Rows [row, row + count): their losses, their gradients, and those of their logits.
    const auto run_block = [&, hidden = hidden, vocab = vocab](std::ptrdiff_t row, int count, float* made, Own& own) {
        own.multiply({x + row * hidden, hidden}, count, panels[0], {made, stride});
        for (int i = 0; i < count; i++) {
            float *logit = made + i * stride, *target = logit + targets[row + i];
            const float wanted = *target, weight = weights[row + i];
            losses[row + i] = weight * (kernels_.softmax(logit, vocab, vocab, 1.0f, weight) - wanted);
            *target -= weight;
        }
        own.multiply({made, stride}, count, panels[1], {d_x + row * hidden, hidden});
    };
    team_.run([&, rows = rows, hidden = hidden, vocab = vocab](int thread) {
        pack(products_, team_, panels);
        for (int chunk = 0; chunk < rows; chunk += kChunkRows) {
            const int count = std::min(kChunkRows, rows - chunk);
            team_.for_each((count + kBlockRows - 1) / kBlockRows, 1, [&](int block) {
                const int first = block * kBlockRows;
                run_block(chunk + first, std::min(kBlockRows, count - first), logits + first * stride, own_[thread]);
            });
            team_.for_each(bands, 1, [&](int band) {
                const int begin = vocab * std::int64_t(band) / bands, end = vocab * std::int64_t(band + 1) / bands;
                const OuterProduct product[] = {{{logits + begin, stride},
                                                 end - begin,
                                                 {d_head + std::ptrdiff_t(begin) * hidden, hidden}}};
                own_[thread].multiply_outer(product, {x + std::ptrdiff_t(chunk) * hidden, hidden}, hidden, count,
                                            chunk > 0);
            });
        }
    });
    double total = 0;
    for (int i = 0; i < rows; i++) total += losses[i];
    return total;
}

}  // namespace freedive
