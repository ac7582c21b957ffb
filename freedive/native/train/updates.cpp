// Optimizers' passes over all weights, in pieces of them.
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

void Training::adamw(std::span<const Updated> all, AdamStep step) {
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
