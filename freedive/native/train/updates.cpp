// The optimizers' updates: passes over all weights, one piece of a weight in each task.
#include "training.h"

namespace freedive {
namespace {

constexpr int kPiece = 1 << 14;

std::ptrdiff_t pieces_of(const Updated& at) { return (at.size + kPiece - 1) / kPiece; }

// Calls run(weight, begin, count) for all pieces of all weights.
template <class Run>
void for_pieces(Team& team, std::span<const Updated> all, Run&& run) {
    std::ptrdiff_t total = 0;
    for (const Updated& at : all) total += pieces_of(at);
    team.run([&](int) {
        team.for_each(int(total), 4, [&](int task) {
            std::ptrdiff_t piece = task;
            const Updated* at = all.data();
            for (; piece >= pieces_of(*at); at++) piece -= pieces_of(*at);
            const std::ptrdiff_t begin = piece * kPiece;
            run(*at, begin, int(std::min<std::ptrdiff_t>(kPiece, at->size - begin)));
        });
    });
}

}  // namespace

std::vector<Updated> updated_weights(std::span<const MutableFloatArray> weights,
                                     std::span<const MutableFloatArray> gradients,
                                     std::span<const MutableFloatArray> momenta,
                                     std::span<const MutableFloatArray> squares, std::span<const float> keeps,
                                     std::span<const float> rates) {
    const std::size_t count = weights.size();
    require(gradients.size() == count && momenta.size() == count && keeps.size() == count && rates.size() == count &&
                (squares.empty() || squares.size() == count),
            "lists differ in length");
    std::vector<Updated> all;
    for (std::size_t i = 0; i < count; i++) {
        const std::size_t size = weights[i].size();
        require(
            gradients[i].size() == size && momenta[i].size() == size && (squares.empty() || squares[i].size() == size),
            "an array has the wrong shape");
        all.push_back({weights[i].data, gradients[i].data, momenta[i].data, squares.empty() ? nullptr : squares[i].data,
                       std::ptrdiff_t(size), keeps[i], rates[i]});
    }
    return all;
}

void Training::adamw(std::span<const Updated> all, AdamStep step) {
    for (const Updated& each : all) require(each.size == 0 || each.square, "AdamW needs averages of squares");
    const std::lock_guard lock(one_at_a_time_);
    for_pieces(team_, all, [&](const Updated& at, std::ptrdiff_t begin, int n) { kernels_.adamw(at, begin, n, step); });
}

void Training::nesterov(std::span<const Updated> all, float beta, float shrink) {
    const std::lock_guard lock(one_at_a_time_);
    for_pieces(team_, all,
               [&](const Updated& at, std::ptrdiff_t begin, int n) { kernels_.nesterov(at, begin, n, beta, shrink); });
}

void Training::apply_update(std::span<const Updated> all) {
    const std::lock_guard lock(one_at_a_time_);
    for_pieces(team_, all,
               [&](const Updated& at, std::ptrdiff_t begin, int n) { kernels_.apply_update(at, begin, n); });
}

}  // namespace freedive
