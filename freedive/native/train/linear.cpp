// Linear layers: blocks of rows by the whole weight. The weight's gradient is summed by parts of the rows, whose number
// depends on the shape alone, and by bands of its own rows.
#include "training.h"

namespace freedive {
namespace {

constexpr int kBlockRows = 192;
constexpr int kPartRows = 2048, kMostParts = 8, kPartStep = 32;  // rows of a part, about; its last steps are whole
constexpr int kSummed = 4096;  // numbers of parts that are added at once

// Inside a job: the products of all rows with a factor that has memory.
void multiply_all(const FloatProducts& products, Team& team, Own& own, const Panels& right, const float* x, int rows,
                  float* y) {
    pack(products, team, {&right, 1});
    team.for_each((rows + kBlockRows - 1) / kBlockRows, 1, [&](int block) {
        const std::ptrdiff_t row = block * kBlockRows;
        own.multiply({x + row * right.k, right.k}, std::min(kBlockRows, rows - int(row)), right,
                     {y + row * right.columns, right.columns});
    });
}

// A weight's gradient, [out, in], in parts that are summed in order.
struct Parts {
    Parts(LinearShape shape, Arena& arena, float* sum)
        : shape(shape),
          count(std::clamp(shape.rows / kPartRows, 1, kMostParts)),
          size(std::ptrdiff_t(shape.out) * shape.in),
          sum(sum),
          rest(arena.take((count - 1) * size)) {}
    const LinearShape shape;
    const int count;
    const std::ptrdiff_t size;
    float *const sum, *const rest;  // the first part is where the sum will be

    int row(int part) const { return part == count ? shape.rows : shape.rows / count / kPartStep * kPartStep * part; }
    void add_band(int part, int band, int bands, const float* x, const float* d_y, Own& own) const {
        const int begin = shape.out * std::int64_t(band) / bands, end = shape.out * std::int64_t(band + 1) / bands;
        const std::ptrdiff_t first = row(part);
        float* to = (part ? rest + (part - 1) * size : sum) + std::ptrdiff_t(begin) * shape.in;
        own.multiply_outer({{{d_y + first * shape.out + begin, shape.out}, end - begin, {to, shape.in}}},
                           {x + first * shape.in, shape.in}, shape.in, row(part + 1) - row(part), false);
    }
    // Inside a job.
    void add(Team& team) const {
        team.for_each(count > 1 ? int((size + kSummed - 1) / kSummed) : 0, 1, [&](int block) {
            const std::ptrdiff_t begin = std::ptrdiff_t(block) * kSummed, end = std::min(size, begin + kSummed);
            for (const float* part = rest; part != rest + (count - 1) * size; part += size)
                for (std::ptrdiff_t i = begin; i < end; i++) sum[i] += part[i];
        });
    }
};

}  // namespace

void Training::linear(LinearShape shape, const float* x, const float* weight, float* y) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    Panels panels = forward_panels(weight, shape.out, shape.in);
    panels.data = shared_.take(panels.size(products_));
    team_.run([&](int thread) { multiply_all(products_, team_, own_[thread], panels, x, shape.rows, y); });
}

void Training::linear_backward(LinearShape shape, const float* x, const float* weight, const float* d_y, float* d_x,
                               float* d_weight) {
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    Panels panels = backward_panels(weight, shape.out, shape.in);
    panels.data = shared_.take(panels.size(products_));
    const Parts parts(shape, shared_, d_weight);
    const int bands = std::min((team_.size() + parts.count - 1) / parts.count, shape.out);
    team_.run([&](int thread) {
        if (d_x) multiply_all(products_, team_, own_[thread], panels, d_y, shape.rows, d_x);
        if (!d_weight) return;
        team_.for_each(parts.count * bands, 1, [&](int task) {
            parts.add_band(task / bands, task % bands, bands, x, d_y, own_[thread]);
        });
        parts.add(team_);
    });
}

}  // namespace freedive
