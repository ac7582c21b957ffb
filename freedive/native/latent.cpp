// Multi-head latent attention (DeepSeek-V2, section 2.1) over a paged cache of latents. As in attention.cpp, keys are
// processed in splits of 256 absolute positions, whose results are merged in order.
#include <algorithm>
#include <cstring>

#include "activations.h"
#include "panel_products.h"

namespace freedive {
namespace {

// A head's matrix times `rows` activation rows: put(row, column, width, products) by panels.
template <class Put>
void multiply_head(const Program& program, const Weight& w, const float* x, int x_stride, int rows, Put&& put) {
    Products products;
    for (int first = 0; first < rows; first += kBlockRows) {
        const int count = std::min(kBlockRows, rows - first);
        const void* block[kBlockRows];
        for (int r = 0; r < count; r++) block[r] = x + std::size_t(first + r) * x_stride;
        for (int p = 0; p < num_panels(w.rows); p++) {
            program.kernels.linear[int(w.format)](w.panel(p), w.k, block, count, products.at);
            const int column = p * kPanelRows, width = std::min(kPanelRows, w.rows - column);
            for (int r = 0; r < count; r++) put(first + r, column, width, products.at + r * kPanelRows);
        }
    }
}

// The same for rows of bfloat16.
template <class Put>
void multiply_head_in_bf16(Program& program, int thread, const Weight& w, std::span<const void* const> rows,
                           Put&& put) {
    for (int first = 0; first < num_panels(w.rows); first += kTaskPanels) {
        const int last = std::min(first + kTaskPanels, num_panels(w.rows));
        const ManyProducts products = multiply_in_bf16(program, thread, w, first, last, rows);
        for (int p = first; p < last; p++)
            for (std::size_t r = 0; r < rows.size(); r++)
                put(int(r), p * kPanelRows, std::min(kPanelRows, w.rows - p * kPanelRows),
                    products.panel(0, p) + r * kPanelRows);
    }
}

}  // namespace

Weight LatentAttention::head_of(const Program& program, int weight, int head) const {
    Weight w = program.weights[weight];
    w.rows /= num_heads;
    w.data += panel_bytes(w.format, w.k) * num_panels(w.rows) * head;
    return w;
}

void LatentAttention::prepare(Program& program) {
    expanded_.clear();
    absorbed_.clear();
    merges_.clear();
    query_of_.assign(program.num_rows(q), kNone);
    int num_partials = 0, num_queries = 0;
    for (int s = 0; s < int(program.step.sequences.size()); s++) {
        const Sequence& sequence = program.step.sequences[s];
        const int given = std::clamp(sequence.prompt - sequence.start, 0, sequence.length);
        if (given) expanded_.push_back({s, given});
        for (int i = given; i < sequence.length; i++) {
            const int row = sequence.row + i, splits = (sequence.start + i) / kSplitTokens + 1;
            for (int head = 0; head < num_heads; head += kLatentHeads) {
                for (int h = head; h < std::min(num_heads, head + kLatentHeads); h++)
                    merges_.push_back({row, h, splits, num_partials + h - head});
                for (int split = 0; split < splits; split++, num_partials += kLatentHeads)
                    absorbed_.push_back({s, row, num_queries, head, split, num_partials});
            }
            query_of_[row] = num_queries++;
        }
    }
    std::stable_sort(merges_.begin(), merges_.end(), [](const Merge& a, const Merge& b) { return a.head < b.head; });
    const std::size_t numbers = std::size_t(num_queries) * head_groups() * kLatentHeads * dim();
    if (program.absorbed.size() < numbers) program.absorbed.resize(numbers);
    program.partials.reserve(num_partials, whole_columns(rank));
}

void LatentAttention::run(Program& program, int thread) const {
    const int rows = program.num_rows(q);  // consecutive tasks use the same head's matrix while it is in the cache
    program.team.for_each(rows * num_heads, rows, [&](int i) { take_in(program, i % rows, i / rows); });
    if (!expanded_.empty())
        program.team.for_each(int(expanded_.size()) * num_heads, 1, [&](int i) {
            attend_expanded(program, thread, expanded_[i / num_heads], i % num_heads);
        });
    if (absorbed_.empty()) return;
    program.team.for_each(int(absorbed_.size()), 1, [&](int i) { attend_absorbed(program, absorbed_[i]); });
    const int queries = int(merges_.size()) / num_heads;  // also ordered by head
    program.team.for_each(int(merges_.size()), queries,
                          [&](int i) { merge(program, merges_[i], program.scratch[thread]); });
}

// Rotates one query head of a row, and absorbs k_b into it if the row was generated. The first head's task also stores
// the row's latent.
void LatentAttention::take_in(Program& program, int row, int head) const {
    apply(program, rope, row, rope_dim, program.buffers[q].row(row) + head * head_dim() + nope_dim);
    if (query_of_[row] != kNone) absorb(program, row, query_of_[row], head);
    if (head == 0) store(program, row);
}

void LatentAttention::store(Program& program, int row) const {
    float* made = program.buffers[kv].row(row);
    program.kernels.rms_norm(made, program.vectors[norm.weight].data(), rank, norm.eps, made);
    apply(program, rope, row, rope_dim, made + rank);

    const Sequence& s = program.step.sequences[program.step.sequence_of[row]];
    std::uint8_t* slot = latent(program, s, program.step.positions[row]);
    if (program.cache.format() == CacheFormat::F32)
        std::memcpy(slot, made, dim() * sizeof(float));
    else
        program.kernels.to_half(made, dim(), (std::uint16_t*)slot);
}

// The address of the latent at a position in the cache.
std::uint8_t* LatentAttention::latent(Program& program, const Sequence& s, int position) const {
    return program.cache.values(s.pages[position / kPageTokens], layer, 0) +
           std::size_t(position % kPageTokens) * stride(program) * number_bytes(program.cache.format());
}

// The absorbed queries [dim][16] of the 16 heads that include `head`.
float* LatentAttention::absorbed_query(Program& program, int query, int head) const {
    return program.absorbed.data() + (std::size_t(query) * head_groups() + head / kLatentHeads) * dim() * kLatentHeads;
}

// Computes one head's query for latents instead of keys: k_b^T q, then the rotated part.
void LatentAttention::absorb(Program& program, int row, int query, int head) const {
    const Weight w = head_of(program, k_b, head);
    const float* from = program.buffers[q].row(row) + head * head_dim();
    alignas(64) float folded[kMaxHeadDim] = {};
    for (int p = 0; p < num_panels(w.rows); p++) {
        float part[kPanelRows] = {};
        std::copy_n(from + p * kPanelRows, std::min(kPanelRows, nope_dim - p * kPanelRows), part);
        program.kernels.add_transposed(w.format, w.panel(p), w.k, part, folded);
    }
    std::copy_n(from + nope_dim, rope_dim, folded + rank);
    float* to = absorbed_query(program, query, head);
    for (int d = 0; d < dim(); d++) to[d * kLatentHeads + head % kLatentHeads] = folded[d] * scale;
}

// Expands latents to keys [page][head_dim][32] and values [position][value_stride] of one head at positions
// [begin, end) of a split; the rest of the last page is zero.
void LatentAttention::expand(Program& program, int thread, const Sequence& s, int head, int begin, int end,
                             float* latents, float* keys, float* values) const {
    const int count = end - begin, width = stride(program), pages = (count + kPageTokens - 1) / kPageTokens;
    const int value_stride = whole_columns(value_dim);
    for (int t = 0; t < count; t++) {
        const std::uint8_t* from = latent(program, s, begin + t);
        float* to = latents + std::size_t(t) * width;
        if (program.cache.format() == CacheFormat::F32)
            std::memcpy(to, from, width * sizeof(float));
        else
            program.kernels.from_half((const std::uint16_t*)from, width, to);
    }
    std::fill_n(keys, std::size_t(pages) * kPageTokens * head_dim(), 0.0f);
    std::fill_n(values, std::size_t(pages) * kPageTokens * value_stride, 0.0f);
    const auto key = [&](int t, int d) -> float& {
        return keys[(std::size_t(t / kPageTokens) * head_dim() + d) * kPageTokens + t % kPageTokens];
    };
    for (int t = 0; t < count; t++)
        for (int d = 0; d < rope_dim; d++) key(t, nope_dim + d) = latents[std::size_t(t) * width + rank + d];
    const auto put_key = [&](int t, int column, int n, const float* x) {
        for (int d = 0; d < n; d++) key(t, column + d) = x[d];
    };
    const auto put_value = [&](int t, int column, int n, const float* x) {
        std::copy_n(x, n, values + std::size_t(t) * value_stride + column);
    };
    if (program.is_in_bf16(s)) {
        const void* rows[kSplitTokens];  // in the place of the floats
        for (int t = 0; t < count; t++) {
            float* row = latents + std::size_t(t) * width;
            program.kernels.to_bf16(row, rank, (std::uint16_t*)row);
            rows[t] = row;
        }
        multiply_head_in_bf16(program, thread, head_of(program, k_b, head), {rows, std::size_t(count)}, put_key);
        multiply_head_in_bf16(program, thread, head_of(program, v_b, head), {rows, std::size_t(count)}, put_value);
    } else {
        multiply_head(program, head_of(program, k_b, head), latents, width, count, put_key);
        multiply_head(program, head_of(program, v_b, head), latents, width, count, put_value);
    }
}

void LatentAttention::attend_expanded(Program& program, int thread, const Expanded& task, int head) const {
    ThreadScratch& scratch = program.scratch[thread];
    const Sequence& s = program.step.sequences[task.sequence];
    const int value_stride = whole_columns(value_dim), last = s.start + task.count;
    const std::size_t sizes[] = {std::size_t(kSplitTokens) * stride(program), std::size_t(kSplitTokens) * head_dim(),
                                 std::size_t(kSplitTokens) * value_stride, kMaxAttendRows * kMaxHeadDim};
    scratch.floats.resize(sizes[0] + sizes[1] + sizes[2] + sizes[3]);
    float *latents = scratch.floats.data(), *keys = latents + sizes[0], *values = keys + sizes[1];
    scratch.partials.reserve(task.count, value_stride);
    AttendPartial* states = scratch.partials.start(0, task.count, value_stride);

    const std::uint8_t *key_pages[kSplitPages], *value_pages[kSplitPages];
    for (int p = 0; p < kSplitPages; p++) {
        key_pages[p] = (const std::uint8_t*)(keys + std::size_t(p) * kPageTokens * head_dim());
        value_pages[p] = (const std::uint8_t*)(values + std::size_t(p) * kPageTokens * value_stride);
    }
    AttendTask rows{};
    rows.keys = key_pages;
    rows.values = value_pages;
    rows.key_dim = head_dim();
    rows.value_dim = rows.value_stride = value_stride;
    for (int begin = 0; begin < last; begin += kSplitTokens) {
        rows.begin = begin;
        const int end = std::min(begin + kSplitTokens, last);
        expand(program, thread, s, head, begin, end, latents, keys, values);
        const SplitFactors factors = scratch.split_factors(0, (end - begin + kPageTokens - 1) / kPageTokens);
        if (program.is_in_bf16(s)) program.kernels.load_split[int(CacheFormat::F32)](rows, factors);
        for (int first = std::max(0, begin - s.start); first < task.count; first += kMaxAttendRows) {
            rows.num_rows = std::min(kMaxAttendRows, task.count - first);
            take_queries(program, s, head, first, values + sizes[2], rows);
            if (program.is_in_bf16(s))
                program.kernels.attend_split(rows, factors, states + first);
            else
                program.kernels.attend[int(CacheFormat::F32)](rows, states + first);
        }
    }
    for (int i = 0; i < task.count; i++)
        write_result(states[i], value_dim, program.buffers[out].row(s.row + i) + head * value_dim);
}

// Copies a task's queries, of rows from `first` on.
void LatentAttention::take_queries(Program& program, const Sequence& s, int head, int first, float* to,
                                   AttendTask& task) const {
    task.q = to;
    for (int r = 0; r < task.num_rows; r++) {
        const float* from = program.buffers[q].row(s.row + first + r) + head * head_dim();
        alignas(64) float query[kMaxHeadDim];
        for (int i = 0; i < head_dim(); i++) query[i] = from[i] * scale;
        write_query(program, program.is_in_bf16(s), query, head_dim(), r, to);
        task.first[r] = 0;
        task.last[r] = s.start + first + r + 1;
    }
}

void LatentAttention::attend_absorbed(Program& program, const Absorbed& absorbed) const {
    const Sequence& s = program.step.sequences[absorbed.sequence];
    const std::uint8_t* pages[kSplitPages];
    AttendTask task{};
    task.num_rows = std::min(kLatentHeads, num_heads - absorbed.first_head);
    task.q = absorbed_query(program, absorbed.query, absorbed.first_head);
    task.begin = absorbed.split * kSplitTokens;
    task.values = pages;
    task.key_dim = dim();
    task.value_dim = whole_columns(rank);
    task.value_stride = stride(program);
    const int last = program.step.positions[absorbed.row] + 1;
    std::fill_n(task.last, task.num_rows, last);
    for (int p = 0; p < kSplitPages && task.begin + p * kPageTokens < last; p++)
        pages[p] = program.cache.values(s.pages[absorbed.split * kSplitPages + p], layer, 0);
    AttendPartial* states = program.partials.start(absorbed.partial, task.num_rows, task.value_dim);
    program.kernels.attend_latent[int(program.cache.format())](task, states);
}

// Merges the splits of a head, then computes its values from the weighted latents.
void LatentAttention::merge(Program& program, const Merge& merge, ThreadScratch& scratch) const {
    const int width = whole_columns(rank);
    const AttendPartial& state = fold_splits(program, merge.partial, kLatentHeads, merge.num_splits, width, scratch);
    write_result(state, rank, state.values);
    float* to = program.buffers[out].row(merge.row) + merge.head * value_dim;
    multiply_head(program, head_of(program, v_b, merge.head), state.values, width, 1,
                  [&](int, int column, int n, const float* x) { std::copy_n(x, n, to + column); });
}

}  // namespace freedive
