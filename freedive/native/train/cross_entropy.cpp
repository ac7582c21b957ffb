// The loss and its gradients in one pass: the logits of a few rows stay in a thread's cache, and their gradients are
// packed as a factor of the head's gradient.
#include "training.h"

namespace freedive {
namespace {
constexpr int kBlockRows = 96, kChunkRows = 10 * kBlockRows;  // rows of a task; rows between two additions to d_head
constexpr int kBandTiles = 2;                                 // tiles of d_head in one task
// Padding between rows of logits: at distances of a power of two they would share few cache sets.
constexpr int kSpace = 48;

// Logits [rows, vocab] = x [rows, hidden] head^T.
struct CrossEntropyShape {
    int rows, hidden, vocab;
};

CrossEntropyShape checked_shape(const FloatArray& x, const FloatArray& head, const IntArray& targets,
                                const FloatArray& weights) {
    require_num_dims(x, 2), require_num_dims(head, 2);
    const std::size_t rows = x.shape[0], hidden = x.shape[1], vocab = head.shape[0];
    require_shape(head, {vocab, hidden}), require_shape(targets, {rows}), require_shape(weights, {rows});
    for (std::size_t i = 0; i < rows; i++)
        require(targets.data[i] >= 0 && targets.data[i] < std::int64_t(vocab), "there is no such token");
    return {int(rows), int(hidden), int(vocab)};
}

}  // namespace

double Training::cross_entropy(const FloatArray& input, const FloatArray& head_weight, const IntArray& targets,
                               const FloatArray& weights, const MutableFloatArray& d_input,
                               const MutableFloatArray& d_head_weight) {
    const auto [rows, hidden, vocab] = checked_shape(input, head_weight, targets, weights);
    require(d_input.shape == input.shape && d_head_weight.shape == head_weight.shape, "an array has the wrong shape");
    const float *x = input.data, *head = head_weight.data;
    float *d_x = d_input.data, *d_head = d_head_weight.data;
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const int most = std::min(rows, kChunkRows);
    Panels panels[] = {forward_panels(head, vocab, hidden), backward_panels(head, vocab, hidden)};
    Panels inputs{{x, hidden}, most, hidden, false};
    for (Panels* each : {&panels[0], &panels[1], &inputs}) each->data = shared_.take(each->size(products_));
    const PackedColumns gradients(products_, vocab, most, shared_);
    float* losses = shared_.take(rows);
    if (!rows) std::fill_n(d_head, std::ptrdiff_t(vocab) * hidden, 0.0f);
    // Computes losses and gradients of rows [row, row + count). Packs their logits' gradients from row `at` of the
    // chunk.
    const auto run_block = [&, hidden = hidden, vocab = vocab](std::ptrdiff_t row, int at, int count, Own& own) {
        own.arena.clear();
        const MutableView logits{own.arena.take(std::size_t(count) * (vocab + kSpace)), vocab + kSpace};
        own.multiply({x + row * hidden, hidden}, count, panels[0], logits);
        for (int i = 0; i < count; i++) {
            float *logit = logits.row(i), *target = logit + targets.data[row + i];
            const float wanted = *target, weight = weights.data[row + i];
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
