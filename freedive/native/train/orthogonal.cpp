// Newton-Schulz iterations on many matrices; one thread computes all of a matrix.
#include <cmath>

#include "training.h"

namespace freedive {
namespace {

constexpr int kBlockRows = 36;  // rounded down to whole tiles

// `count` matrices [rows, columns], one after the other.
struct Matrices {
    float* data;
    int count, rows, columns;
};

// out = left right for a symmetric product: computes the lower triangle and mirrors it.
void multiply_symmetric(const FloatProducts& products, Own& own, View left, const Panels& right, MutableView out) {
    const int n = right.columns, step = kBlockRows / products.tile_rows * products.tile_rows;
    Panels lower = right;
    for (int begin = 0; begin < n; begin += step) {
        lower.columns = std::min(begin + step, n);
        own.multiply(left.from(begin), lower.columns - begin, lower, out.from(begin));
    }
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++) out.row(i)[j] = out.row(j)[i];
}

// Applies `turns` iterations to x [rows, columns], rows <= columns. The result lies in `next` if `turns` is odd.
void turn(const FloatProducts& products, Polynomial p, int turns, int rows, int columns, float* x, float* next,
          Own& own) {
    Arena& arena = own.arena;
    Panels across{{x, columns}, columns, rows, true}, along{{x, columns}, rows, columns, false};
    across.data = arena.take(across.size(products)), along.data = arena.take(along.size(products));
    float *square = arena.take(std::size_t(rows) * rows), *fourth = arena.take(std::size_t(rows) * rows);
    Panels squares{{square, rows}, rows, rows, false, arena.take(Panels{{}, rows, rows, false}.size(products))};
    for (int i = 0; i < turns; i++, std::swap(x, next)) {
        across.source.data = along.source.data = x;
        pack(products, across);
        multiply_symmetric(products, own, {x, columns}, across, {square, rows});
        pack(products, squares);
        multiply_symmetric(products, own, {square, rows}, squares, {fourth, rows});
        for (int at = 0; at < rows * rows; at++) fourth[at] = p.b * square[at] + p.c * fourth[at];
        for (int row = 0; row < rows; row++) fourth[row * (rows + 1)] += p.a;
        pack(products, along);
        own.multiply({fourth, rows}, rows, along, {next, columns});
    }
}

}  // namespace

void Training::orthogonalise(std::span<const MutableFloatArray> stacks, Polynomial polynomial, int turns) {
    std::vector<Matrices> all;
    for (const MutableFloatArray& each : stacks) {
        require_num_dims(each, 3);
        all.push_back({each.data, int(each.shape[0]), int(each.shape[1]), int(each.shape[2])});
    }
    const std::lock_guard lock(one_at_a_time_);
    const auto run_matrix = [&](const Matrices& matrices, int index, Own& own) {
        Arena& arena = own.arena;
        arena.clear();
        const int rows = std::min(matrices.rows, matrices.columns), columns = std::max(matrices.rows, matrices.columns);
        const int size = rows * columns;
        const bool tall = matrices.rows > matrices.columns;
        float *from = matrices.data + std::ptrdiff_t(index) * size, *x = arena.take(size), *next = arena.take(size);
        const float shrink = 1 / (std::sqrt(kernels_.dot(from, from, size)) + polynomial.eps);
        const auto place = [&](int at) { return tall ? at % columns * rows + at / columns : at; };
        for (int at = 0; at < size; at++) x[at] = from[place(at)] * shrink;
        turn(products_, polynomial, turns, rows, columns, x, next, own);
        const float* made = turns % 2 ? next : x;
        for (int at = 0; at < size; at++) from[place(at)] = made[at];
    };
    int total = 0;
    for (const Matrices& matrices : all) total += matrices.count;
    team_.run([&](int thread) {
        team_.for_each(total, 1, [&](int task) {
            for (const Matrices& matrices : all) {
                if (task < matrices.count) return run_matrix(matrices, task, own_[thread]);
                task -= matrices.count;
            }
        });
    });
}

}  // namespace freedive
