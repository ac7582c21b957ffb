// Attention over a paged cache. Keys are taken in splits of 256 absolute positions whose results are folded in order,
// so a row's result does not depend on what it is computed beside or how a prompt was cut.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "operations.h"

namespace freedive {
namespace {

void rotate_halves(float* x, const float* cosines, int dim) {
    const int n = dim / 2;
    const float* sines = cosines + n;
    for (int i = 0; i < n; i++) {
        const float a = x[i], b = x[i + n];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + n] = b * cosines[i] + a * sines[i];
    }
}

void rotate_interleaved(float* x, const float* cosines, int dim) {
    const int n = dim / 2;
    const float* sines = cosines + n;
    for (int i = 0; i < n; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
}

void temper(float* x, int dim, int position, float floor_scale, float scale) {
    const float factor = std::log1p(std::floor(float(position + 1) / floor_scale)) * scale + 1;
    for (int i = 0; i < dim; i++) x[i] *= factor;
}

// Writes one head's key or value of a token into its page: element i at slot + i * step.
template <class T>
void scatter(const T* from, int n, int step, T* slot) {
    for (int i = 0; i < n; i++) slot[std::size_t(i) * step] = from[i];
}

}  // namespace

void write_result(const AttendPartial& state, int n, float* out) {
    for (int i = 0; i < n; i++) out[i] = state.values[i] / state.sum;
}

void apply(const Machine& m, const HeadStep& step, int row, int dim, float* head) {
    switch (step.kind) {
        case HeadStep::Norm:
            m.kernels.rms_norm(head, m.vectors[step.operand].data(), dim, step.a, head);
            break;
        case HeadStep::RopeHalves:
            rotate_halves(head, m.buffers[step.operand].row(row), step.dim);
            break;
        case HeadStep::RopeInterleaved:
            rotate_interleaved(head, m.buffers[step.operand].row(row), step.dim);
            break;
        case HeadStep::Temper:
            temper(head, dim, m.step.positions[row], step.a, step.b);
            break;
    }
}

int Attention::first_key(int position) const {
    if (window) return std::max(0, position - window + 1);
    return chunk ? position - position % chunk : 0;
}

void Attention::prepare(Machine& m) {
    tiles_.clear();
    merges_.clear();
    int num_partials = 0;
    const int tile_rows = m.kernels.attend_rows;
    for (int s = 0; s < int(m.step.sequences.size()); s++) {
        const Sequence& sequence = m.step.sequences[s];
        const int rows = sequence.length * group();
        const int begin = first_key(sequence.start) / kSplitTokens, end = (sequence.end() - 1) / kSplitTokens + 1;
        const bool apart = sequence.length == 1 && end - begin > 1;
        for (int head = 0; head < num_kv_heads; head++) {
            for (int first = 0; first < rows; first += tile_rows) {
                const int count = std::min(tile_rows, rows - first);
                if (!apart) tiles_.push_back({s, head, first, count, begin, end, kNone});
                for (int split = begin; apart && split < end; split++)
                    tiles_.push_back(
                        {s, head, first, count, split, split + 1, num_partials + (split - begin) * rows + first});
            }
            if (apart) merges_.push_back({s, head, end - begin, num_partials});
            if (apart) num_partials += (end - begin) * rows;
        }
    }
    std::reverse(tiles_.begin(), tiles_.end());  // late rows see most keys: longest tasks first
    const std::size_t floats = std::size_t(num_partials) * (2 + m.cache.layer(layer).value_stride());
    if (m.partials.size() < floats) m.partials.resize(floats);
}

void Attention::run(Machine& m, int) const {
    const int tokens = m.num_rows(q);
    m.team.for_each(tokens * num_kv_heads, std::max(1, tokens / 8),
                    [&](int i) { store(m, i / num_kv_heads, i % num_kv_heads); });
    m.team.for_each(int(tiles_.size()), 1, [&](int i) { attend(m, tiles_[i]); });
    if (!merges_.empty()) m.team.for_each(int(merges_.size()), 1, [&](int i) { merge(m, merges_[i]); });
}

float* Attention::out_row(Machine& m, int sequence, int head, int row) const {
    const int token = m.step.sequences[sequence].row + row / group();
    return m.buffers[out].row(token) + (head * group() + row % group()) * value_dim;
}

float* Attention::partial_row(Machine& m, int row) const {
    return m.partials.data() + std::size_t(row) * (2 + m.cache.layer(layer).value_stride());
}

void Attention::store(Machine& m, int row, int head) const {
    for (int h = head * group(); h < (head + 1) * group(); h++)
        for (const HeadStep& step : q_steps) apply(m, step, row, key_dim, m.buffers[q].row(row) + h * key_dim);
    float* key = m.buffers[k].row(row) + head * key_dim;
    for (const HeadStep& step : k_steps) apply(m, step, row, key_dim, key);
    const float* value = m.buffers[v].row(row) + head * value_dim;

    const Sequence& s = m.step.sequences[m.step.sequence_of[row]];
    const int position = m.step.positions[row], page = s.pages[position / kPageTokens], slot = position % kPageTokens;
    std::uint8_t *keys = m.cache.keys(page, layer, head), *values = m.cache.values(page, layer, head);
    const int value_stride = m.cache.layer(layer).value_stride();
    if (m.cache.element_bytes() == 4) {
        scatter(key, key_dim, kPageTokens, (float*)keys + slot);
        scatter(value, value_dim, 1, (float*)values + slot * value_stride);
    } else {
        std::uint16_t halves[kMaxHeadDim];
        m.kernels.to_half(key, key_dim, halves);
        scatter(halves, key_dim, kPageTokens, (std::uint16_t*)keys + slot);
        m.kernels.to_half(value, value_dim, (std::uint16_t*)values + slot * value_stride);
    }
}

void Attention::attend(Machine& m, const Tile& tile) const {
    const Sequence& s = m.step.sequences[tile.sequence];
    const int stride = m.cache.layer(layer).value_stride();
    const std::uint8_t *keys[kSplitPages], *values[kSplitPages];
    AttendTask task{};
    task.num_rows = tile.count;
    task.key_dim = key_dim;
    task.value_stride = stride;
    task.scale = scale;
    task.softcap = softcap;
    task.keys = keys;
    task.values = values;
    int last = 0;
    for (int r = 0; r < tile.count; r++) {
        const int row = tile.first + r, token = row / group(), position = s.start + token;
        task.q[r] = m.buffers[q].row(s.row + token) + (tile.head * group() + row % group()) * key_dim;
        task.first[r] = first_key(position);
        task.last[r] = position + 1;
        last = std::max(last, position + 1);
    }
    alignas(64) float memory[2][kMaxAttendRows][kMaxHeadDim];
    AttendPartial state[kMaxAttendRows], next[kMaxAttendRows];
    for (int r = 0; r < tile.count; r++) {
        state[r] = {kNoScore, 0, memory[0][r]};
        next[r] = {kNoScore, 0, memory[1][r]};
        std::memset(memory[0][r], 0, stride * sizeof(float));
    }
    for (int split = tile.split_begin; split < tile.split_end && split * kSplitTokens < last; split++) {
        task.begin = split * kSplitTokens;
        task.end = std::min(task.begin + kSplitTokens, last);
        for (int p = 0; task.begin + p * kPageTokens < task.end; p++) {
            const int page = s.pages[task.begin / kPageTokens + p];
            keys[p] = m.cache.keys(page, layer, tile.head);
            values[p] = m.cache.values(page, layer, tile.head);
        }
        (m.cache.element_bytes() == 4 ? m.kernels.attend_f32 : m.kernels.attend_f16)(task, next);
        for (int r = 0; r < tile.count; r++) m.kernels.fold(state[r], next[r], stride);
    }
    for (int r = 0; r < tile.count; r++) {
        if (tile.partial == kNone) {
            add_sink(m, tile.head * group() + (tile.first + r) % group(), state[r], stride);
            write_result(state[r], value_dim, out_row(m, tile.sequence, tile.head, tile.first + r));
        } else {
            float* to = partial_row(m, tile.partial + r);
            to[0] = state[r].max;
            to[1] = state[r].sum;
            std::memcpy(to + 2, state[r].values, stride * sizeof(float));
        }
    }
}

// A sink takes its part of the softmax and gives no value.
void Attention::add_sink(const Machine& m, int head, AttendPartial& state, int stride) const {
    if (sinks == kNone) return;
    alignas(64) float nothing[kMaxHeadDim] = {};
    m.kernels.fold(state, {m.vectors[sinks][head], 1, nothing}, stride);
}

void Attention::merge(Machine& m, const Merge& merge) const {
    const int stride = m.cache.layer(layer).value_stride();
    alignas(64) float values[kMaxHeadDim];
    for (int row = 0; row < group(); row++) {
        std::memset(values, 0, sizeof values);
        AttendPartial state{kNoScore, 0, values};
        for (int split = 0; split < merge.num_splits; split++) {
            float* p = partial_row(m, merge.partial + split * group() + row);
            m.kernels.fold(state, {p[0], p[1], p + 2}, stride);
        }
        add_sink(m, merge.head * group() + row, state, stride);
        write_result(state, value_dim, out_row(m, merge.sequence, merge.head, row));
    }
}

}  // namespace freedive
