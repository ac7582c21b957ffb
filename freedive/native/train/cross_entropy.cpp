// The loss and its gradients at once: logits of a few rows live in a thread's cache, and what is left of them is packed
// as a factor of the head's gradient.
#include "training.h"

namespace freedive {
namespace {
constexpr int kBlockRows = 96, kChunkRows = 10 * kBlockRows;  // of a task, and between two additions to d_head
constexpr int kBandTiles = 2;                                 // of d_head: a task
constexpr int kSpace = 48;  // between rows of logits: a power of two apart they would crowd into few sets of the cache
}  // namespace

double Training::cross_entropy(CrossEntropyShape shape, const float* x, const float* head, const std::int64_t* targets,
                               const float* weights, float* d_x, float* d_head) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const auto [rows, hidden, vocab] = shape;
    const int most = std::min(rows, kChunkRows);
    Panels panels[] = {forward_panels(head, vocab, hidden), backward_panels(head, vocab, hidden)};
    Panels inputs{{x, hidden}, most, hidden, false};
    for (Panels* each : {&panels[0], &panels[1], &inputs}) each->data = shared_.take(each->size(products_));
    const PackedColumns gradients(products_, vocab, most, shared_);
    float* losses = shared_.take(rows);
    if (!rows) std::fill_n(d_head, std::ptrdiff_t(vocab) * hidden, 0.0f);
    // Rows [row, row + count): their losses and gradients. Those of their logits go to row `at` of the chunk's.
    const auto run_block = [&, hidden = hidden, vocab = vocab](std::ptrdiff_t row, int at, int count, Own& own) {
        own.arena.clear();
        const MutableView logits{own.arena.take(std::size_t(count) * (vocab + kSpace)), vocab + kSpace};
        own.multiply({x + row * hidden, hidden}, count, panels[0], logits);
        for (int i = 0; i < count; i++) {
            float *logit = logits.row(i), *target = logit + targets[row + i];
            const float wanted = *target, weight = weights[row + i];
            losses[row + i] = weight * (kernels_.softmax(logit, vocab, vocab, 1.0f, weight) - wanted);
            *target -= weight;
        }
        own.multiply(logits, count, panels[1], {d_x + row * hidden, hidden});
        gradients.pack(logits, at, count);
    };
    team_.run([&, rows = rows, hidden = hidden](int thread) {
        pack(products_, team_, panels);
        for (int chunk = 0; chunk < rows; chunk += kChunkRows) {
            Panels right = inputs;
            right.k = std::min(kChunkRows, rows - chunk), right.source = inputs.source.from(chunk);
            pack(products_, team_, {&right, 1});
            team_.for_each((right.k + kBlockRows - 1) / kBlockRows, 1, [&](int block) {
                const int at = block * kBlockRows;
                run_block(chunk + at, at, std::min(kBlockRows, right.k - at), own_[thread]);
            });
            const int tiles = gradients.cut.tiles;
            team_.for_each((tiles + kBandTiles - 1) / kBandTiles, 1, [&](int band) {
                const int begin = band * kBandTiles;
                own_[thread].multiply_columns(gradients, begin, std::min(begin + kBandTiles, tiles), right,
                                              {d_head, hidden}, chunk > 0);
            });
        }
    });
    double total = 0;
    for (int i = 0; i < rows; i++) total += losses[i];
    return total;
}

}  // namespace freedive
