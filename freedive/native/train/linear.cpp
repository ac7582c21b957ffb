// Linear layers. A task of the forward pass multiplies a block of rows by whole weights. In the backward pass the rows
// are divided into parts, whose number depends on the shape alone, and each weight's gradient into bands of its rows; a
// task computes one band of one part, and the gradients of some input rows while these are in the cache.
#include "training.h"

namespace freedive {
namespace {

constexpr int kBlockRows = 96;
constexpr int kPartRows = 2048, kMostParts = 8;  // rows of a part, about
constexpr int kPartStep = 32;                    // of which the boundaries of parts are multiples
constexpr int kNearRows = 512;                   // rows whose gradients fit in the second-level cache
constexpr int kSummed = 4096;                    // numbers that one task adds over all parts

// Linear layers of the same x [rows, in], for each of which y [rows, out] = x weight^T.
struct LinearShape {
    int rows, in;
};
struct Linear {
    const float* weight;
    int out;
    float* y;
};
struct LinearGradient {
    const float* weight;
    int out;
    const float* d_y;
    float* d_weight;  // null: not computed
};

LinearShape checked_shape(const FloatArray& x, std::size_t num_weights, std::size_t num_ys) {
    require_num_dims(x, 2);
    require(num_weights == num_ys, "lists differ in length");
    return {int(x.shape[0]), int(x.shape[1])};
}
// Returns the layer's number of outputs.
int checked_outputs(const FloatArray& x, const FloatArray& weight, const auto& y) {
    require_num_dims(weight, 2);
    require_shape(weight, {weight.shape[0], x.shape[1]});
    require_shape(y, {x.shape[0], weight.shape[0]});
    return int(weight.shape[0]);
}

// Calls run(row, count) for blocks of rows, inside a job.
template <class Run>
void for_blocks(Team& team, int rows, Run&& run) {
    team.for_each((rows + kBlockRows - 1) / kBlockRows, 1, [&](int block) {
        const std::ptrdiff_t row = std::ptrdiff_t(block) * kBlockRows;
        run(row, std::min(kBlockRows, rows - int(row)));
    });
}

// The right factors of all weights, with memory that is still to be packed.
template <class Weights>
std::vector<Panels> panels_of(const FloatProducts& products, Arena& arena, const Weights& all, int in,
                              Panels (*panels)(const float*, int, int)) {
    std::vector<Panels> factors;
    for (const auto& each : all) {
        factors.push_back(panels(each.weight, each.out, in));
        factors.back().data = arena.take(factors.back().size(products));
    }
    return factors;
}

// Gradients of weights [out, in], computed in parts of the rows and then summed in order.
struct Parts {
    Parts(LinearShape shape, std::span<const LinearGradient> all, Arena& arena)
        : shape(shape), all(all), count(std::clamp(shape.rows / kPartRows, 1, kMostParts)) {
        for (const LinearGradient& each : all)
            rest.push_back(each.d_weight ? arena.take((count - 1) * size(each)) : nullptr);
    }
    const LinearShape shape;
    const std::span<const LinearGradient> all;
    const int count;
    std::vector<float*> rest;  // memory of all parts but the first, which is computed in place

    std::ptrdiff_t size(const LinearGradient& of) const { return std::ptrdiff_t(of.out) * shape.in; }
    int row(int part) const { return part == count ? shape.rows : shape.rows / count / kPartStep * kPartStep * part; }

    // Adds the rows of one part to one band of every gradient. Calls first(row, count) for the band's share of blocks.
    template <class First>
    void add_band(int part, int band, int bands, const float* x, Own& own, First&& first) const {
        std::vector<OuterProduct> products;
        int row = this->row(part), block = 0;
        const int end = this->row(part + 1);
        do {  // runs once without rows too, so that the gradients become 0
            const int count = std::min(kNearRows, end - row);
            if (block % bands == band) first(row, count);
            products.clear();
            for (std::size_t i = 0; i < all.size(); i++)
                if (all[i].d_weight) products.push_back(of_band(i, part, band, bands, row));
            own.multiply_outer(products, {x + std::ptrdiff_t(row) * shape.in, shape.in}, shape.in, count, block > 0);
            row += kNearRows, block++;
        } while (row < end);
    }
    OuterProduct of_band(std::size_t i, int part, int band, int bands, std::ptrdiff_t row) const {
        const LinearGradient& of = all[i];
        const int begin = of.out * std::int64_t(band) / bands, end = of.out * std::int64_t(band + 1) / bands;
        float* to = part ? rest[i] + (part - 1) * size(of) : of.d_weight;
        return {
            {of.d_y + row * of.out + begin, of.out}, end - begin, {to + std::ptrdiff_t(begin) * shape.in, shape.in}};
    }
    // Sums the parts in order, inside a job.
    void add(Team& team) const {
        for (std::size_t i = 0; i < all.size() && count > 1; i++) {
            const std::ptrdiff_t size = this->size(all[i]);
            float* sum = all[i].d_weight;
            team.for_each(sum ? int((size + kSummed - 1) / kSummed) : 0, 1, [&](int block) {
                const std::ptrdiff_t begin = std::ptrdiff_t(block) * kSummed, end = std::min(size, begin + kSummed);
                for (const float* part = rest[i]; part != rest[i] + (count - 1) * size; part += size)
                    for (std::ptrdiff_t at = begin; at < end; at++) sum[at] += part[at];
            });
        }
    }
};

}  // namespace

void Training::linears(const FloatArray& input, std::span<const FloatArray> weights,
                       std::span<const MutableFloatArray> ys) {
    const LinearShape shape = checked_shape(input, weights.size(), ys.size());
    std::vector<Linear> all;
    for (std::size_t i = 0; i < ys.size(); i++)
        all.push_back({weights[i].data, checked_outputs(input, weights[i], ys[i]), ys[i].data});
    const float* x = input.data;
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const auto factors = panels_of(products_, shared_, all, shape.in, forward_panels);
    team_.run([&](int thread) {
        pack(products_, team_, factors);
        for_blocks(team_, shape.rows, [&](std::ptrdiff_t row, int count) {
            std::vector<Product> products;
            for (std::size_t i = 0; i < all.size(); i++)
                products.push_back({factors[i], {all[i].y + row * all[i].out, all[i].out}, false});
            own_[thread].multiply({x + row * shape.in, shape.in}, count, shape.in, products);
        });
    });
}

void Training::linears_backward(const FloatArray& input, std::span<const FloatArray> weights,
                                std::span<const FloatArray> d_ys, const MutableFloatArray& d_input,
                                std::span<const MutableFloatArray> d_weights) {
    const LinearShape shape = checked_shape(input, weights.size(), d_ys.size());
    require(d_weights.size() == weights.size(), "lists differ in length");
    std::vector<LinearGradient> all;
    for (std::size_t i = 0; i < d_ys.size(); i++) {
        const int out = checked_outputs(input, weights[i], d_ys[i]);
        if (d_weights[i].is_given()) require(d_weights[i].shape == weights[i].shape, "an array has the wrong shape");
        all.push_back({weights[i].data, out, d_ys[i].data, d_weights[i].data});
    }
    if (d_input.is_given()) require(d_input.shape == input.shape, "an array has the wrong shape");
    const float* x = input.data;
    float* d_x = d_input.data;
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const auto factors = panels_of(products_, shared_, all, shape.in, backward_panels);
    const Parts parts(shape, all, shared_);
    const int bands = (team_.size() + parts.count - 1) / parts.count;
    const auto add_rows = [&](std::ptrdiff_t row, int count, Own& own) {
        for (std::size_t i = 0; i < all.size() && d_x; i++)
            own.multiply({all[i].d_y + row * all[i].out, all[i].out}, count, factors[i],
                         {d_x + row * shape.in, shape.in}, i > 0);
    };
    team_.run([&](int thread) {
        Own& own = own_[thread];
        if (d_x) pack(products_, team_, factors);
        team_.for_each(parts.count * bands, 1, [&](int task) {
            parts.add_band(task / bands, task % bands, bands, x, own,
                           [&](int row, int count) { add_rows(row, count, own); });
        });
        parts.add(team_);
    });
}

}  // namespace freedive
