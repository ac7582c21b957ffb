// Causal attention of whole sequences; a task is one head of one sequence. It computes the scores of a few queries
// against all their keys at once. The backward pass recomputes the scores from the logarithms of their sums.
#include "training.h"

namespace freedive {
namespace {

constexpr int kMostQueryRows = 64;

// Rotary embedding of the last `dim` numbers of queries and keys; `angles` holds cosines [tokens, dim / 2], then sines.
struct Rotation {
    const float* angles = nullptr;
    std::ptrdiff_t tokens = 0;
    int dim = 0;
    bool neighbours = false;
};

struct AttentionShape {
    const std::int64_t* begins;
    int sequences, heads, dim;
    float scale;
    Rotation rotation;
    int length(int sequence) const { return int(begins[sequence + 1] - begins[sequence]); }
    int key_dim() const { return dim - rotation.dim; }
    std::ptrdiff_t tokens() const { return begins[sequences]; }
};

Rotation checked_rotation(const AttentionInput& input, std::size_t tokens) {
    if (!input.turning.is_given()) return {};
    require_num_dims(input.turning, 2);
    const std::size_t dim = input.turning.shape[1];
    require(dim % 2 == 0, "an array has the wrong shape");
    require_shape(input.turning, {tokens, dim}), require_shape(input.angles, {2, tokens, dim / 2});
    return {input.angles.data, std::ptrdiff_t(tokens), int(dim), input.neighbours};
}

AttentionShape checked_shape(const AttentionInput& input, const auto& out, const auto& log_sums) {
    require_num_dims(input.q, 3), require_num_dims(input.begins, 1);
    const std::size_t tokens = input.q.shape[0], heads = input.q.shape[1], dim = input.q.shape[2];
    const Rotation rotation = checked_rotation(input, tokens);
    require(std::size_t(rotation.dim) <= dim, "an array has the wrong shape");
    require_shape(input.k, {tokens, heads, dim - rotation.dim}), require_shape(input.v, {tokens, heads, dim});
    require_shape(out, {tokens, heads, dim}), require_shape(log_sums, {tokens * heads});
    const std::int64_t* first = input.begins.data;
    const std::int64_t* last = first + input.begins.shape[0] - 1;
    require(last >= first && *first == 0 && *last == std::int64_t(tokens) && std::is_sorted(first, last + 1),
            "sequences do not lie end to end");
    return {first, int(last - first), int(heads), int(dim), input.scale, rotation};
}

// Queries at once: kMostQueryRows rounded down to whole tiles.
int query_rows(const FloatProducts& products) { return kMostQueryRows / products.tile_rows * products.tile_rows; }

Panels packed(const FloatProducts& products, Arena& arena, Panels panels) {
    panels.data = arena.take(panels.size(products));
    pack(products, panels);
    return panels;
}

// Memory for rows of scores. Their distance is not a power of two, at which they would share few sets of the cache.
MutableView scores_of(const FloatProducts& products, Arena& arena, int length) {
    const int columns = (length / products.tile_columns + 1) * products.tile_columns;
    return {arena.take(std::size_t(kMostQueryRows) * columns), columns};
}

// The keys before position `end`, which the queries before `end` see.
Panels seen(Panels keys, int end) {
    keys.columns = end;
    return keys;
}

// One head of one sequence, whose rows begin with `first`.
struct Head {
    int sequence, head, length;
    std::ptrdiff_t first;

    Head(AttentionShape shape, int task)
        : sequence(task / shape.heads),
          head(task % shape.heads),
          length(shape.length(sequence)),
          first(shape.begins[sequence]) {}
    template <class Rows>
    Rows of(decltype(Rows::data) all, const AttentionShape& shape, int dim) const {
        const std::ptrdiff_t stride = std::ptrdiff_t(shape.heads) * dim;
        return {all + first * stride + std::ptrdiff_t(head) * dim, stride};
    }
    std::ptrdiff_t log_sums(const AttentionShape& shape) const {
        return first * shape.heads + std::ptrdiff_t(head) * length;
    }
};

// Prefetches a row of a head; the rows lie too far apart for the hardware prefetcher.
void fetch(const float* row, int dim) {
    for (int i = 0; i < dim; i += 16) __builtin_prefetch(row + i, 0, 2);
}

Angles angles(const Rotation& by, std::ptrdiff_t token) {
    const float* cos = by.angles + token * (by.dim / 2);
    return {cos, cos + by.tokens * (by.dim / 2), by.dim / 2, by.neighbours};
}

// Returns rows with their last part rotated, joined from both parts; the plain rows if there is no rotation.
View joined(const TrainKernels& kernels, const AttentionShape& shape, const Head& head, View plain, View last,
            Arena& arena) {
    if (!shape.rotation.dim) return plain;
    const MutableView rows{arena.take(std::size_t(head.length) * shape.dim), shape.dim};
    for (int i = 0; i < head.length; i++)
        kernels.concat_rope(plain.row(i), shape.key_dim(), last.row(i), angles(shape.rotation, head.first + i),
                            rows.row(i));
    return rows;
}
// Splits gradients of joined rows into those of both parts; does nothing if there is no rotation.
void part(const TrainKernels& kernels, const AttentionShape& shape, const Head& head, View joined, MutableView plain,
          MutableView last) {
    for (int i = 0; i < head.length && shape.rotation.dim; i++)
        kernels.split_rope(joined.row(i), shape.key_dim(), angles(shape.rotation, head.first + i), plain.row(i),
                           last.row(i));
}

// The queries and keys of a head after rotary embedding.
struct Turned {
    View q, k;
    Turned(const TrainKernels& kernels, const AttentionShape& shape, const Head& head, const AttentionInput& input,
           Arena& arena)
        : q(head.of<View>(input.q.data, shape, shape.dim)), k(head.of<View>(input.k.data, shape, shape.key_dim())) {
        const int dim = shape.rotation.dim;
        q = joined(kernels, shape, head, q, q.columns_from(shape.key_dim()), arena);
        k = joined(kernels, shape, head, k, {input.turning.data + head.first * dim, dim}, arena);
    }
};

// Calls run(head) for every head, inside a job.
template <class Run>
void for_heads(Team& team, const AttentionShape& shape, Run&& run) {
    team.for_each(shape.sequences * shape.heads, 1, [&](int task) { run(Head(shape, task)); });
}

// Sums `parts` [heads, tokens * dim] over the heads, in order.
void sum_heads(Team& team, const AttentionShape& shape, const float* parts, float* sum) {
    const std::ptrdiff_t dim = shape.rotation.dim;
    team.for_each(shape.sequences, 1, [&](int sequence) {
        const std::ptrdiff_t begin = shape.begins[sequence] * dim, end = shape.begins[sequence + 1] * dim;
        std::copy(parts + begin, parts + end, sum + begin);
        for (int head = 1; head < shape.heads; head++) {
            const float* part = parts + head * shape.tokens() * dim;
            for (std::ptrdiff_t i = begin; i < end; i++) sum[i] += part[i];
        }
    });
}

}  // namespace

void Training::attention(const AttentionInput& input, const MutableFloatArray& out, const MutableFloatArray& log_sums) {
    const AttentionShape shape = checked_shape(input, out, log_sums);
    const std::lock_guard lock(one_at_a_time_);
    const int dim = shape.dim, at_once = query_rows(products_);
    const auto run_head = [&](const Head& head, Own& own) {
        Arena& arena = own.arena;
        arena.clear();
        const auto [q, k] = Turned(kernels_, shape, head, input, arena);
        const auto v = head.of<View>(input.v.data, shape, dim);
        const auto to = head.of<MutableView>(out.data, shape, dim), scores = scores_of(products_, arena, head.length);
        const Panels keys = packed(products_, arena, {k, dim, head.length, true});
        const Panels values = packed(products_, arena, {v, head.length, dim, false});
        float* log_sum = log_sums.data + head.log_sums(shape);
        for (int begin = 0; begin < head.length; begin += at_once) {
            const int count = std::min(at_once, head.length - begin), end = begin + count;
            own.multiply(q.from(begin), count, seen(keys, end), scores);
            for (int i = 0; i < count; i++)
                log_sum[begin + i] = kernels_.softmax(scores.row(i), begin + i + 1, end, shape.scale, 1.0f);
            const Product product[] = {{values, to.from(begin), false}};
            own.multiply(scores, count, end, product);
        }
    };
    team_.run([&](int thread) { for_heads(team_, shape, [&](const Head& head) { run_head(head, own_[thread]); }); });
}

void Training::attention_backward(const AttentionInput& input, const FloatArray& out, const FloatArray& log_sums,
                                  const FloatArray& d_out, const AttentionGradients& gradients) {
    const AttentionShape shape = checked_shape(input, out, log_sums);
    require(d_out.shape == out.shape && gradients.q.shape == input.q.shape && gradients.k.shape == input.k.shape &&
                gradients.v.shape == input.v.shape && gradients.turning.shape == input.turning.shape,
            "an array has the wrong shape");
    const std::lock_guard lock(one_at_a_time_);
    shared_.clear();
    const int dim = shape.dim, at_once = query_rows(products_), turning = shape.rotation.dim;
    float* d_turning = shared_.take(shape.heads * shape.tokens() * turning);  // [heads, tokens, turning]
    const auto run_head = [&](const Head& head, Own& own) {
        const int length = head.length;
        Arena& arena = own.arena;
        arena.clear();
        const auto [q, k] = Turned(kernels_, shape, head, input, arena);
        const auto v = head.of<View>(input.v.data, shape, dim);
        const auto made = head.of<View>(out.data, shape, dim), d_made = head.of<View>(d_out.data, shape, dim);
        const auto plain_q = head.of<MutableView>(gradients.q.data, shape, dim);
        const auto plain_k = head.of<MutableView>(gradients.k.data, shape, shape.key_dim());
        const auto d_v = head.of<MutableView>(gradients.v.data, shape, dim);
        const auto gradient = [&](MutableView plain) {
            return turning ? MutableView{arena.take(std::size_t(length) * dim), dim} : plain;
        };
        const MutableView d_q = gradient(plain_q), d_k = gradient(plain_k);
        const MutableView parts = scores_of(products_, arena, length), d_scores = scores_of(products_, arena, length);
        const Panels keys = packed(products_, arena, {k, dim, length, true});
        const Panels values = packed(products_, arena, {v, dim, length, true});
        const Panels key_rows = packed(products_, arena, {k, length, dim, false});
        Panels few{q, at_once, dim, false, arena.take(Panels{q, at_once, dim, false}.size(products_))};
        const float* log_sum = log_sums.data + head.log_sums(shape);
        for (int begin = 0; begin < length; begin += at_once) {
            const int count = std::min(at_once, length - begin), end = begin + count;
            for (int row = end; row < std::min(end + at_once, length); row++)
                fetch(made.row(row), dim), fetch(d_made.row(row), dim);
            own.multiply(q.from(begin), count, seen(keys, end), parts);
            own.multiply(d_made.from(begin), count, seen(values, end), d_scores);
            for (int i = 0; i < count; i++)
                kernels_.softmax_gradient(parts.row(i), d_scores.row(i), begin + i + 1, end, shape.scale,
                                          log_sum[begin + i],
                                          kernels_.dot(made.row(begin + i), d_made.row(begin + i), dim));
            const Product product[] = {{key_rows, d_q.from(begin), false}};
            own.multiply(d_scores, count, end, product);
            const auto add_columns = [&](View left, View right, MutableView to) {  // keys from `begin` on are new
                few.source = right.from(begin), few.k = count;
                pack(products_, few);
                own.multiply_columns(left, begin, few, to, true);
                own.multiply_columns(left.columns_from(begin), count, few, to.from(begin), false);
            };
            add_columns(d_scores, q, d_k);
            add_columns(parts, d_made, d_v);
        }
        part(kernels_, shape, head, d_q, plain_q, plain_q.columns_from(shape.key_dim()));
        const std::ptrdiff_t first = head.head * shape.tokens() + head.first;
        part(kernels_, shape, head, d_k, plain_k, {d_turning + first * turning, turning});
    };
    team_.run([&](int thread) {
        for_heads(team_, shape, [&](const Head& head) { run_head(head, own_[thread]); });
        if (turning) sum_heads(team_, shape, d_turning, gradients.turning.data);
    });
}

}  // namespace freedive
