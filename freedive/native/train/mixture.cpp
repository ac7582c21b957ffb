// A mixture of gated experts. Tokens are divided into blocks. One thread runs all experts of a block in order and adds
// their outputs to the block's rows, which stay in its cache.
#include "training.h"

namespace freedive {
namespace {

constexpr int kExpertRows = 128;  // average rows of a block for each expert
constexpr int kBandRows = 192;    // rows of a weight's gradient in one task

// Each of `tokens` goes to `chosen` of the `experts`.
struct MixtureShape {
    int tokens, chosen, experts, hidden, dim;
};

MixtureShape checked_shape(const MixtureInput& input, const auto& gate_up, std::size_t kept_width) {
    require_num_dims(input.x, 2), require_num_dims(input.choices, 2), require_num_dims(input.gate, 3);
    const std::size_t tokens = input.x.shape[0], hidden = input.x.shape[1], chosen = input.choices.shape[1];
    const std::size_t experts = input.gate.shape[0], dim = input.gate.shape[1];
    require_shape(input.shares, {tokens, chosen}), require_shape(input.choices, {tokens, chosen});
    require_shape(gate_up, {tokens * chosen, 2 * kept_width});
    require_shape(input.gate, {experts, dim, hidden}), require_shape(input.up, {experts, dim, hidden});
    require_shape(input.down, {experts, hidden, dim});
    for (std::size_t i = 0; i < tokens * chosen; i++)
        require(input.choices.data[i] >= 0 && input.choices.data[i] < std::int64_t(experts), "there is no such expert");
    return {int(tokens), int(chosen), int(experts), int(hidden), int(dim)};
}

// Choices sorted by expert, and within an expert by token.
struct Sorted {
    int block_tokens, num_blocks;
    std::vector<int> places;  // indices into `choices`, by rank
    std::vector<int> tokens;  // their tokens, by rank
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

// The right factors of all experts, with memory that is still to be packed.
struct Factors {
    std::vector<Panels> gate, up, down;

    Factors(const FloatProducts& products, Arena& arena, MixtureShape shape, const MixtureInput& input,
            Panels (*panels_of)(const float*, int, int)) {
        const auto add = [&](std::vector<Panels>& to, const float* weight, int out, int in) {
            for (int e = 0; e < shape.experts; e++) {
                to.push_back(panels_of(weight + std::ptrdiff_t(e) * out * in, out, in));
                to.back().data = arena.take(to.back().size(products));
            }
        };
        add(gate, input.gate.data, shape.dim, shape.hidden);
        add(up, input.up.data, shape.dim, shape.hidden);
        add(down, input.down.data, shape.hidden, shape.dim);
    }
    void pack(const FloatProducts& products, Team& team) const {
        for (const std::span<const Panels> each : {std::span(gate), std::span(up), std::span(down)})
            freedive::pack(products, team, each);
    }
};

// What the forward and the backward pass have in common.
struct Pass {
    const TrainKernels& kernels;
    const MixtureShape shape;
    const Sorted sorted;
    const Factors factors;
    const float* shares;
    Kept inputs;   // x
    Kept gate_up;  // by rank; two parts: gate and up

    const int* tokens(int rank) const { return sorted.tokens.data() + rank; }
    // Sets the rows of `out` to 0 and calls run(expert, block) for all experts; one thread has all of a block.
    template <class Run>
    void for_blocks(Team& team, float* out, Run&& run) const {
        team.for_each(sorted.num_blocks, 1, [&](int block) {
            const int first = block * sorted.block_tokens, count = std::min(sorted.block_tokens, shape.tokens - first);
            std::fill_n(out + std::ptrdiff_t(first) * shape.hidden, std::ptrdiff_t(count) * shape.hidden, 0.0f);
            for (int e = 0; e < shape.experts; e++) run(e, block);
        });
    }
    // Converts all tokens' rows to the kept form, inside a job.
    void keep_rows(Team& team, const float* rows, const Kept& to) const {
        team.for_each(to.halves() ? shape.tokens : 0, 32,
                      [&](int token) { to.write(rows + std::ptrdiff_t(token) * shape.hidden, to.at(token)); });
    }
};

// The kept rows of all tokens: the given rows if they are kept as floats, else new memory.
Kept kept_rows(const FloatProducts& products, Arena& arena, MixtureShape shape, const float* rows) {
    Kept kept(products, const_cast<float*>(rows), shape.hidden);  // never written if they are floats
    if (kept.halves()) kept.data = arena.take(shape.tokens * kept.stride);
    return kept;
}

struct Forward : Pass {
    float* y;

    void run_expert(int e, int block, Own& own) const {
        const int begin = sorted.begin(e, block), count = sorted.count(e, block), dim = shape.dim;
        own.arena.clear();
        const MutableView mixed{own.arena.take(std::size_t(count) * dim), dim};
        const MutableView made{gate_up.place(gate_up.at(begin), own.arena.take(std::size_t(count) * 2 * dim)), 2 * dim};
        const Product both[] = {{factors.gate[e], made, false}, {factors.up[e], made.columns_from(dim), false}};
        own.multiply(inputs.view(0, 0, tokens(begin)), count, shape.hidden, both);
        for (int i = 0; i < count; i++) {
            const float *gate = made.row(i), *up = gate + dim;
            kernels.weighted_swiglu(gate, up, shares[sorted.places[begin + i]], dim, mixed.row(i));
            gate_up.write(gate, gate_up.at(begin + i)), gate_up.write(up, gate_up.at(begin + i, 1));
        }
        own.multiply(mixed, count, factors.down[e], {y, shape.hidden, tokens(begin)}, true);
    }
};

struct Backward : Pass {
    const MixtureGradients& gradients;
    Kept outputs;           // d_y
    Kept d_gate_up, mixed;  // by rank

    void run_expert(int e, int block, Own& own) const {
        const int begin = sorted.begin(e, block), count = sorted.count(e, block), dim = shape.dim;
        const MutableView d_x{gradients.x.data, shape.hidden, tokens(begin)};
        own.arena.clear();
        const MutableView d_mixed{own.arena.take(std::size_t(count) * dim), dim};
        const std::size_t room = (dim + 31) / 32 * 32;  // rows are loaded in whole steps
        float* of[] = {own.arena.take(room), own.arena.take(room), own.arena.take(room), own.arena.take(room)};
        own.multiply(outputs.view(0, 0, tokens(begin)), count, factors.down[e], d_mixed);
        for (int i = 0; i < count; i++) {
            const int place = sorted.places[begin + i], rank = begin + i;
            float *d_gate = d_gate_up.at(rank), *d_up = d_gate_up.at(rank, 1), *mix = mixed.at(rank);
            const float *gate = gate_up.read(gate_up.at(rank), of[0]), *up = gate_up.read(gate_up.at(rank, 1), of[1]);
            float *made_gate = d_gate_up.place(d_gate, of[2]), *made_up = d_gate_up.place(d_up, of[3]);
            float* made_mix = mixed.place(mix, d_mixed.row(i));
            gradients.shares.data[place] = kernels.weighted_swiglu_gradient(gate, up, d_mixed.row(i), shares[place],
                                                                            dim, made_gate, made_up, made_mix);
            d_gate_up.write(made_gate, d_gate), d_gate_up.write(made_up, d_up), mixed.write(made_mix, mix);
        }
        own.multiply(d_gate_up.view(begin, 0), count, factors.gate[e], d_x, true);
        own.multiply(d_gate_up.view(begin, 1), count, factors.up[e], d_x, true);
    }

    // The gradients [out, in] of an expert's weights are divided into bands of rows; a task of gate also computes up.
    static int bands(int out) { return (out + kBandRows - 1) / kBandRows; }
    int bands() const { return bands(shape.dim) + bands(shape.hidden); }  // number of bands of one expert
    void run_band(int e, int band, Own& own) const {
        const int first = sorted.begin(e, 0), count = sorted.begin(e + 1, 0) - first;
        const int dim = shape.dim, hidden = shape.hidden, begin = band * kBandRows;
        const auto of = [&](float* gradient, int out, int in, int row, View left) -> OuterProduct {
            return {left.columns_from(row),
                    std::min(kBandRows, out - row),
                    {gradient + (std::ptrdiff_t(e) * out + row) * in, in}};
        };
        if (band < bands(dim)) {
            const OuterProduct both[] = {of(gradients.gate.data, dim, hidden, begin, d_gate_up.view(first, 0)),
                                         of(gradients.up.data, dim, hidden, begin, d_gate_up.view(first, 1))};
            return own.multiply_outer(both, inputs.view(0, 0, tokens(first)), hidden, count, false);
        }
        const OuterProduct down[] = {
            of(gradients.down.data, hidden, dim, begin - bands(dim) * kBandRows, outputs.view(0, 0, tokens(first)))};
        own.multiply_outer(down, mixed.view(first), dim, count, false);
    }
};

}  // namespace

std::ptrdiff_t Training::kept_width(int dim) const { return Kept::width_of(products_, dim); }

void Training::mixture(const MixtureInput& input, const MutableFloatArray& gate_up, const MutableFloatArray& y) {
    require_num_dims(input.gate, 3);
    const MixtureShape shape = checked_shape(input, gate_up, kept_width(int(input.gate.shape[1])));
    require(y.shape == input.x.shape, "an array has the wrong shape");
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const Factors factors(products_, shared_, shape, input, forward_panels);
    const Forward pass{
        {kernels_, shape, Sorted(shape, input.choices.data), factors, input.shares.data,
         kept_rows(products_, shared_, shape, input.x.data), Kept(products_, gate_up.data, shape.dim, 2)},
        y.data};
    team_.run([&](int thread) {
        pass.factors.pack(products_, team_);
        pass.keep_rows(team_, input.x.data, pass.inputs);
        pass.for_blocks(team_, y.data, [&](int e, int block) { pass.run_expert(e, block, own_[thread]); });
    });
}

void Training::mixture_backward(const MixtureInput& input, const FloatArray& gate_up, const FloatArray& d_y,
                                const MixtureGradients& gradients) {
    require_num_dims(input.gate, 3);
    const MixtureShape shape = checked_shape(input, gate_up, kept_width(int(input.gate.shape[1])));
    require(d_y.shape == input.x.shape && gradients.x.shape == input.x.shape &&
                gradients.shares.shape == input.shares.shape && gradients.gate.shape == input.gate.shape &&
                gradients.up.shape == input.up.shape && gradients.down.shape == input.down.shape,
            "an array has the wrong shape");
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const Factors factors(products_, shared_, shape, input, backward_panels);
    const std::size_t rows = std::size_t(shape.tokens) * shape.chosen, width = kept_width(shape.dim);
    const Backward pass{{kernels_, shape, Sorted(shape, input.choices.data), factors, input.shares.data,
                         kept_rows(products_, shared_, shape, input.x.data),
                         Kept(products_, const_cast<float*>(gate_up.data), shape.dim, 2)},  // only read from
                        gradients,
                        kept_rows(products_, shared_, shape, d_y.data),
                        Kept(products_, shared_.take(rows * 2 * width), shape.dim, 2),
                        Kept(products_, shared_.take(rows * width), shape.dim)};
    team_.run([&](int thread) {
        pass.factors.pack(products_, team_);
        pass.keep_rows(team_, input.x.data, pass.inputs), pass.keep_rows(team_, d_y.data, pass.outputs);
        pass.for_blocks(team_, gradients.x.data, [&](int e, int block) { pass.run_expert(e, block, own_[thread]); });
        team_.for_each(shape.experts * pass.bands(), 1,
                       [&](int task) { pass.run_band(task / pass.bands(), task % pass.bands(), own_[thread]); });
    });
}

}  // namespace freedive
