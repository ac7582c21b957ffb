// Causal attention of whole sequences: a task is a head of a sequence. Scores of a few queries against all keys that
// they see are made at once; of the backward pass they are made again, from the logarithms of their sums.
#include "training.h"

namespace freedive {
namespace {

constexpr int kMostQueryRows = 36;

// In whole tiles.
int query_rows(const FloatProducts& products) { return kMostQueryRows / products.tile_rows * products.tile_rows; }

Panels packed(const FloatProducts& products, Arena& arena, Panels panels) {
    panels.data = arena.take(panels.size(products));
    pack(products, panels);
    return panels;
}

// Rows of scores: not a power of two apart, which would crowd them into few sets of the cache.
MutableView scores_of(const FloatProducts& products, Arena& arena, int length) {
    const int columns = (length / products.tile_columns + 1) * products.tile_columns;
    return {arena.take(std::size_t(kMostQueryRows) * columns), columns};
}

// The keys that no query before `end` is without.
Panels seen(Panels keys, int end) {
    keys.columns = end;
    return keys;
}

// Calls run(length, first, log_sum, thread) for every head: where its first row begins, and its first logarithm.
template <class Run>
void for_heads(Team& team, AttentionShape shape, Run&& run) {
    team.run([&](int thread) {
        team.for_each(shape.sequences * shape.heads, 1, [&](int task) {
            const int sequence = task / shape.heads, head = task % shape.heads;
            run(shape.length(sequence), shape.first(sequence, head), shape.log_sums(sequence, head), thread);
        });
    });
}

}  // namespace

void Training::attention(AttentionShape shape, AttentionInput input, float* out, float* log_sums) {
    const std::lock_guard lock(one_at_a_time_);
    const std::ptrdiff_t stride = shape.stride();
    const int dim = shape.dim, at_once = query_rows(products_);
    const auto run_head = [&](int length, std::ptrdiff_t first, float* log_sum, Own& own) {
        Arena& arena = own.arena;
        arena.clear();
        const View q{input.q + first, stride}, k{input.k + first, stride}, v{input.v + first, stride};
        const MutableView to{out + first, stride}, scores = scores_of(products_, arena, length);
        const Panels keys = packed(products_, arena, {k, dim, length, true});
        const Panels values = packed(products_, arena, {v, length, dim, false});
        for (int begin = 0; begin < length; begin += at_once) {
            const int count = std::min(at_once, length - begin), end = begin + count;
            own.multiply(q.from(begin), count, seen(keys, end), scores);
            for (int i = 0; i < count; i++)
                log_sum[begin + i] = kernels_.softmax(scores.row(i), begin + i + 1, end, shape.scale, 1.0f);
            own.multiply(scores, count, end, {{values, to.from(begin), false}});
        }
    };
    for_heads(team_, shape, [&](int length, std::ptrdiff_t first, std::ptrdiff_t log_sum, int thread) {
        run_head(length, first, log_sums + log_sum, own_[thread]);
    });
}

void Training::attention_backward(AttentionShape shape, AttentionInput input, const float* out, const float* log_sums,
                                  const float* d_out, AttentionGradients gradients) {
    const std::lock_guard lock(one_at_a_time_);
    const std::ptrdiff_t stride = shape.stride();
    const int dim = shape.dim, at_once = query_rows(products_);
    const auto run_head = [&](int length, std::ptrdiff_t first, const float* log_sum, Own& own) {
        Arena& arena = own.arena;
        arena.clear();
        const View q{input.q + first, stride}, k{input.k + first, stride}, v{input.v + first, stride};
        const View made{out + first, stride}, d_made{d_out + first, stride};
        const MutableView d_q{gradients.q + first, stride}, d_k{gradients.k + first, stride},
            d_v{gradients.v + first, stride};
        const MutableView parts = scores_of(products_, arena, length), d_scores = scores_of(products_, arena, length);
        const Panels keys = packed(products_, arena, {k, dim, length, true});
        const Panels values = packed(products_, arena, {v, dim, length, true});
        const Panels key_rows = packed(products_, arena, {k, length, dim, false});
        Panels few{q, at_once, dim, false, arena.take(Panels{q, at_once, dim, false}.size(products_))};
        for (int i = 0; i < length; i++) std::fill_n(d_k.row(i), dim, 0.0f), std::fill_n(d_v.row(i), dim, 0.0f);
        for (int begin = 0; begin < length; begin += at_once) {
            const int count = std::min(at_once, length - begin), end = begin + count;
            own.multiply(q.from(begin), count, seen(keys, end), parts);
            own.multiply(d_made.from(begin), count, seen(values, end), d_scores);
            for (int i = 0; i < count; i++)
                kernels_.softmax_gradient(parts.row(i), d_scores.row(i), begin + i + 1, end, shape.scale,
                                          log_sum[begin + i],
                                          kernels_.dot(made.row(begin + i), d_made.row(begin + i), dim));
            own.multiply(d_scores, count, end, {{key_rows, d_q.from(begin), false}});
            const auto add_columns = [&](View left, View right, MutableView to) {
                few.source = right.from(begin), few.k = count;
                pack(products_, few);
                own.multiply_columns(left, end, few, to, true);
            };
            add_columns(d_scores, q, d_k);
            add_columns(parts, d_made, d_v);
        }
    };
    for_heads(team_, shape, [&](int length, std::ptrdiff_t first, std::ptrdiff_t log_sum, int thread) {
        run_head(length, first, log_sums + log_sum, own_[thread]);
    });
}

}  // namespace freedive
