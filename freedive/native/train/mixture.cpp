// A mixture of gated experts. Tokens are cut into blocks; a block belongs to one thread, which goes through its experts
// in order and adds what they make to the block's rows, so that all of it stays near.
#include "training.h"

namespace freedive {
namespace {

constexpr int kExpertRows = 96;  // that an expert is to get of a block, on average
constexpr int kBandRows = 192;   // of a weight's gradient: a task

// Choices sorted by expert, and within an expert by token.
struct Sorted {
    int block_tokens, num_blocks;
    std::vector<int> places;  // in `choices`, by rank
    std::vector<int> tokens;  // likewise
    std::vector<int> first;   // ranks of an expert's choices in a block begin at [expert * num_blocks + block]

    int begin(int expert, int block) const { return first[expert * num_blocks + block]; }
    int count(int expert, int block) const { return begin(expert, block + 1) - begin(expert, block); }

    Sorted(MixtureShape shape, const std::int64_t* choices)
        : block_tokens(std::max(kExpertRows * shape.experts / shape.chosen, kExpertRows)),
          num_blocks((shape.tokens + block_tokens - 1) / block_tokens),
          places(std::size_t(shape.tokens) * shape.chosen),
          tokens(places.size()),
          first(std::size_t(shape.experts) * num_blocks + 1) {
        const auto cell = [&](int place) {
            return int(choices[place]) * num_blocks + place / shape.chosen / block_tokens;
        };
        for (int i = 0; i < int(places.size()); i++) first[cell(i) + 1]++;
        for (std::size_t i = 1; i < first.size(); i++) first[i] += first[i - 1];
        std::vector<int> next = first;
        for (int i = 0; i < int(places.size()); i++) {
            const int rank = next[cell(i)]++;
            places[rank] = i, tokens[rank] = i / shape.chosen;
        }
    }
};

// All experts' factors, one after the other, with memory to be packed in.
std::vector<Panels> experts_panels(const TrainKernels& kernels, Arena& arena, const float* weight, int experts, int out,
                                   int in, Panels (*panels_of)(const float*, int, int)) {
    std::vector<Panels> all;
    for (int e = 0; e < experts; e++) {
        all.push_back(panels_of(weight + std::ptrdiff_t(e) * out * in, out, in));
        all.back().data = arena.take(all.back().size(kernels));
    }
    return all;
}

}  // namespace

void Training::mixture(MixtureShape shape, const float* x, const float* shares, const std::int64_t* choices,
                       MixtureWeights weights, float* gate_up, float* y) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const auto [tokens, chosen, experts, hidden, dim] = shape;
    const Sorted sorted(shape, choices);
    const auto panels = [&, experts = experts](const float* weight, int out, int in) {
        return experts_panels(kernels_, shared_, weight, experts, out, in, forward_panels);
    };
    const auto gate = panels(weights.gate, dim, hidden), up = panels(weights.up, dim, hidden);
    const auto down = panels(weights.down, hidden, dim);
    const auto run_expert = [&, hidden = hidden, dim = dim](int e, int block, Arena& arena) {
        const int begin = sorted.begin(e, block), count = sorted.count(e, block);
        const int* rows = sorted.tokens.data() + begin;
        const MutableView made{gate_up + std::ptrdiff_t(begin) * 2 * dim, 2 * dim};
        multiply(kernels_, {x, hidden, rows}, count, gate[e], made, false);
        multiply(kernels_, {x, hidden, rows}, count, up[e], made.columns_from(dim), false);
        arena.clear();
        float* mixed = arena.take(std::size_t(count) * dim);
        for (int i = 0; i < count; i++)
            kernels_.mix(made.row(i), made.row(i) + dim, shares[sorted.places[begin + i]], dim, mixed + i * dim);
        multiply(kernels_, {mixed, dim}, count, down[e], {y, hidden, rows}, true);
    };
    team_.run([&, tokens = tokens, experts = experts, hidden = hidden](int thread) {
        for (const auto& factors : {std::span(gate), std::span(up), std::span(down)}) pack(kernels_, team_, factors);
        team_.for_each(sorted.num_blocks, 1, [&](int block) {
            const int first = block * sorted.block_tokens, count = std::min(sorted.block_tokens, tokens - first);
            std::fill_n(y + std::ptrdiff_t(first) * hidden, std::ptrdiff_t(count) * hidden, 0.0f);
            for (int e = 0; e < experts; e++) run_expert(e, block, own_[thread]);
        });
    });
}

void Training::mixture_backward(MixtureShape shape, const float* x, const float* shares, const std::int64_t* choices,
                                MixtureWeights weights, const float* gate_up, const float* d_y,
                                MixtureGradients gradients) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const int hidden = shape.hidden, dim = shape.dim;
    const Sorted sorted(shape, choices);
    const auto panels = [&](const float* weight, int out, int in) {
        return experts_panels(kernels_, shared_, weight, shape.experts, out, in, backward_panels);
    };
    const auto gate = panels(weights.gate, dim, hidden), up = panels(weights.up, dim, hidden);
    const auto down = panels(weights.down, hidden, dim);
    float* d_gate_up = shared_.take(sorted.places.size() * 2 * dim);
    float* mixed = shared_.take(sorted.places.size() * dim);
    const auto run_expert = [&](int e, int block) {
        const int begin = sorted.begin(e, block), count = sorted.count(e, block);
        const int* rows = sorted.tokens.data() + begin;
        const View made{gate_up + std::ptrdiff_t(begin) * 2 * dim, 2 * dim};
        const MutableView d_made{d_gate_up + std::ptrdiff_t(begin) * 2 * dim, 2 * dim};
        const MutableView mix{mixed + std::ptrdiff_t(begin) * dim, dim};
        multiply(kernels_, {d_y, hidden, rows}, count, down[e], mix, false);
        for (int i = 0; i < count; i++) {
            const int place = sorted.places[begin + i];
            gradients.shares[place] = kernels_.mix_gradient(made.row(i), made.row(i) + dim, mix.row(i), shares[place],
                                                            dim, d_made.row(i), d_made.row(i) + dim, mix.row(i));
        }
        multiply(kernels_, d_made, count, gate[e], {gradients.x, hidden, rows}, true);
        multiply(kernels_, d_made.columns_from(dim), count, up[e], {gradients.x, hidden, rows}, true);
    };
    // The gradient of an expert's weight [out, in]: a band of it, of at most kBandRows.
    const auto run_band = [&](int e, View left, View right, int out, int in, float* gradient, int begin, Arena& arena) {
        const int first = sorted.begin(e, 0), count = sorted.begin(e + 1, 0) - first;
        float* to = gradient + (std::ptrdiff_t(e) * out + begin) * in;
        multiply_outer(kernels_, left.from(first).columns_from(begin), std::min(kBandRows, out - begin),
                       right.from(first), in, count, {to, in}, false, arena);
    };
    const View inputs{x, hidden, sorted.tokens.data()}, outputs{d_y, hidden, sorted.tokens.data()};
    const View d_gates{d_gate_up, 2 * dim}, d_ups{d_gate_up + dim, 2 * dim};
    const int bands = (dim + kBandRows - 1) / kBandRows, down_bands = (hidden + kBandRows - 1) / kBandRows;
    team_.run([&](int thread) {
        for (const auto& factors : {std::span(gate), std::span(up), std::span(down)}) pack(kernels_, team_, factors);
        team_.for_each(sorted.num_blocks, 1, [&](int block) {
            const int first = block * sorted.block_tokens, count = std::min(sorted.block_tokens, shape.tokens - first);
            std::fill_n(gradients.x + std::ptrdiff_t(first) * hidden, std::ptrdiff_t(count) * hidden, 0.0f);
            for (int e = 0; e < shape.experts; e++) run_expert(e, block);
        });
        Arena& arena = own_[thread];
        team_.for_each(shape.experts * (2 * bands + down_bands), 1, [&](int task) {
            const int e = task / (2 * bands + down_bands), band = task % (2 * bands + down_bands);
            if (band < bands)
                run_band(e, d_gates, inputs, dim, hidden, gradients.gate, band * kBandRows, arena);
            else if (band < 2 * bands)
                run_band(e, d_ups, inputs, dim, hidden, gradients.up, (band - bands) * kBandRows, arena);
            else
                run_band(e, outputs, {mixed, dim}, hidden, dim, gradients.down, (band - 2 * bands) * kBandRows, arena);
        });
    });
}

}  // namespace freedive
