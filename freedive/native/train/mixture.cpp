// A mixture of gated experts. Tokens are cut into blocks; a block belongs to one thread, which goes through its experts
// in order and adds what they make to the block's rows, so that all of it stays near.
#include "training.h"

namespace freedive {
namespace {

constexpr int kExpertRows = 128;  // that an expert is to get of a block, on average
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

// The factors of all experts' products, with memory to be packed in.
struct Factors {
    std::vector<Panels> gate, up, down;

    Factors(const FloatProducts& products, Arena& arena, MixtureShape shape, MixtureWeights weights,
            Panels (*panels_of)(const float*, int, int)) {
        const auto add = [&](std::vector<Panels>& to, const float* weight, int out, int in) {
            for (int e = 0; e < shape.experts; e++) {
                to.push_back(panels_of(weight + std::ptrdiff_t(e) * out * in, out, in));
                to.back().data = arena.take(to.back().size(products));
            }
        };
        add(gate, weights.gate, shape.dim, shape.hidden);
        add(up, weights.up, shape.dim, shape.hidden);
        add(down, weights.down, shape.hidden, shape.dim);
    }
    void pack(const FloatProducts& products, Team& team) const {
        for (const std::span<const Panels> each : {std::span(gate), std::span(up), std::span(down)})
            freedive::pack(products, team, each);
    }
};

// What both passes go by.
struct Pass {
    const TrainKernels& kernels;
    const MixtureShape shape;
    const Sorted sorted;
    const Factors factors;
    const float *x, *shares;

    View inputs(int first) const { return {x, shape.hidden, sorted.tokens.data() + first}; }
    // By rank: [gate: dim | up: dim].
    std::ptrdiff_t width() const { return 2 * shape.dim; }
    // Calls run(expert, block) for all experts, on a block's thread, after rows of `out` have been set to 0.
    template <class Run>
    void for_blocks(Team& team, float* out, Run&& run) const {
        team.for_each(sorted.num_blocks, 1, [&](int block) {
            const int first = block * sorted.block_tokens, count = std::min(sorted.block_tokens, shape.tokens - first);
            std::fill_n(out + std::ptrdiff_t(first) * shape.hidden, std::ptrdiff_t(count) * shape.hidden, 0.0f);
            for (int e = 0; e < shape.experts; e++) run(e, block);
        });
    }
};

struct Forward : Pass {
    float *gate_up, *y;

    void run_expert(int e, int block, Own& own) const {
        const int begin = sorted.begin(e, block), count = sorted.count(e, block), dim = shape.dim;
        const MutableView made{gate_up + begin * width(), width()};
        const Product both[] = {{factors.gate[e], made, false}, {factors.up[e], made.columns_from(dim), false}};
        own.multiply(inputs(begin), count, shape.hidden, both);
        own.arena.clear();
        const MutableView mixed{own.arena.take(std::size_t(count) * dim), dim};
        for (int i = 0; i < count; i++)
            kernels.mix(made.row(i), made.row(i) + dim, shares[sorted.places[begin + i]], dim, mixed.row(i));
        own.multiply(mixed, count, factors.down[e], {y, shape.hidden, sorted.tokens.data() + begin}, true);
    }
};

struct Backward : Pass {
    const float *gate_up, *d_y;
    MixtureGradients gradients;
    float *d_gate_up, *mixed;  // by rank: [rows, 2 * dim] and [rows, dim]

    void run_expert(int e, int block, Own& own) const {
        const int begin = sorted.begin(e, block), count = sorted.count(e, block), dim = shape.dim;
        const int* tokens = sorted.tokens.data() + begin;
        const View made{gate_up + begin * width(), width()};
        const MutableView d_made{d_gate_up + begin * width(), width()}, d_x{gradients.x, shape.hidden, tokens};
        const MutableView mix{mixed + std::ptrdiff_t(begin) * dim, dim};
        own.multiply({d_y, shape.hidden, tokens}, count, factors.down[e], mix);
        for (int i = 0; i < count; i++) {
            const int place = sorted.places[begin + i];
            const float *gate = made.row(i), *up = gate + dim;
            float *d_gate = d_made.row(i), *d_up = d_gate + dim;
            gradients.shares[place] =
                kernels.mix_gradient(gate, up, mix.row(i), shares[place], dim, d_gate, d_up, mix.row(i));
        }
        own.multiply(d_made, count, factors.gate[e], d_x, true);
        own.multiply(d_made.columns_from(dim), count, factors.up[e], d_x, true);
    }

    // The gradients [out, in] of an expert's weights are cut into bands of rows; those of gate and up are made together.
    static int bands(int out) { return (out + kBandRows - 1) / kBandRows; }
    int bands() const { return bands(shape.dim) + bands(shape.hidden); }  // of an expert
    void run_band(int e, int band, Own& own) const {
        const int first = sorted.begin(e, 0), count = sorted.begin(e + 1, 0) - first;
        const int dim = shape.dim, hidden = shape.hidden, begin = band * kBandRows;
        const auto of = [&](float* gradient, int out, int in, int row, View left) -> OuterProduct {
            return {left.columns_from(row), std::min(kBandRows, out - row),
                    {gradient + (std::ptrdiff_t(e) * out + row) * in, in}};
        };
        const View d_gates{d_gate_up + first * width(), width()}, d_ups = d_gates.columns_from(dim);
        const View outputs{d_y, hidden, sorted.tokens.data() + first};
        if (band < bands(dim)) {
            const OuterProduct both[] = {of(gradients.gate, dim, hidden, begin, d_gates),
                                         of(gradients.up, dim, hidden, begin, d_ups)};
            return own.multiply_outer(both, inputs(first), hidden, count, false);
        }
        const OuterProduct down[] = {of(gradients.down, hidden, dim, begin - bands(dim) * kBandRows, outputs)};
        own.multiply_outer(down, {mixed + std::ptrdiff_t(first) * dim, dim}, dim, count, false);
    }
};

}  // namespace

void Training::mixture(MixtureShape shape, const float* x, const float* shares, const std::int64_t* choices,
                       MixtureWeights weights, float* gate_up, float* y) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const Factors factors(products_, shared_, shape, weights, forward_panels);
    const Forward pass{{kernels_, shape, Sorted(shape, choices), factors, x, shares}, gate_up, y};
    team_.run([&](int thread) {
        pass.factors.pack(products_, team_);
        pass.for_blocks(team_, y, [&](int e, int block) { pass.run_expert(e, block, own_[thread]); });
    });
}

void Training::mixture_backward(MixtureShape shape, const float* x, const float* shares, const std::int64_t* choices,
                                MixtureWeights weights, const float* gate_up, const float* d_y,
                                MixtureGradients gradients) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const Factors factors(products_, shared_, shape, weights, backward_panels);
    const std::size_t rows = std::size_t(shape.tokens) * shape.chosen;
    float *d_gate_up = shared_.take(rows * 2 * shape.dim), *mixed = shared_.take(rows * shape.dim);
    const Backward pass{
        {kernels_, shape, Sorted(shape, choices), factors, x, shares}, gate_up, d_y, gradients, d_gate_up, mixed};
    team_.run([&](int thread) {
        pass.factors.pack(products_, team_);
        pass.for_blocks(team_, gradients.x, [&](int e, int block) { pass.run_expert(e, block, own_[thread]); });
        team_.for_each(shape.experts * pass.bands(), 1,
                       [&](int task) { pass.run_band(task / pass.bands(), task % pass.bands(), own_[thread]); });
    });
}

}  // namespace freedive
