// Attention over a paged cache. Keys are processed in splits of 256 absolute positions, whose results are merged in
// order, so a row's result does not depend on the other rows of the step or on how a prompt was chunked.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "operations.h"

namespace freedive {
namespace {

constexpr int kMaxPromptRows = 256;  // rows that share the factors made of a split of keys

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

}  // namespace

float temperature(int position, float floor_scale, float scale) {
    return std::log1p(std::floor(float(position) / floor_scale)) * scale + 1;
}

void write_result(const AttendPartial& state, int n, float* out) {
    for (int i = 0; i < n; i++) out[i] = state.values[i] / state.sum;
}

const AttendPartial& fold_splits(Program& program, int first, int step, int num_splits, int width,
                                 ThreadScratch& scratch) {
    scratch.partials.reserve(1, width);
    AttendPartial* state = scratch.partials.start(0, 1, width);
    for (int split = 0; split < num_splits; split++)
        program.kernels.fold(*state, program.partials[first + split * step], width);
    return *state;
}

void write_query(const Program& program, bool in_bf16, const float* query, int dim, int r, float* to) {
    const int width = whole_columns(dim);
    if (in_bf16) return program.kernels.round_query(query, dim, (std::uint16_t*)to + r * width);
    std::copy_n(query, dim, to + r * kMaxHeadDim);
    std::fill_n(to + r * kMaxHeadDim + dim, width - dim, 0.0f);
}

void apply(const Program& program, const HeadStep& step, int row, int dim, float* head) {
    switch (step.kind) {
        case HeadStep::Norm:
            program.kernels.rms_norm(head, program.vectors[step.operand].data(), dim, step.a, head);
            break;
        case HeadStep::RopeHalves:
            rotate_halves(head, program.buffers[step.operand].row(row), step.dim);
            break;
        case HeadStep::RopeInterleaved:
            rotate_interleaved(head, program.buffers[step.operand].row(row), step.dim);
            break;
        case HeadStep::ScaleByPosition: {
            const float factor = temperature(program.step.positions[row] + step.dim, step.a, step.b);
            for (int i = 0; i < dim; i++) head[i] *= factor;
            break;
        }
    }
}

int Attention::first_key(int position) const {
    if (window) return std::max(0, position - window + 1);
    return chunk ? position - position % chunk : 0;
}

bool Attention::uses_bf16(const Program& program, const Sequence& sequence) const {
    return program.is_in_bf16(sequence) && program.cache.format() != CacheFormat::Int8;
}

void Attention::prepare(Program& program) {
    tiles_.clear();
    merges_.clear();
    int num_partials = 0;
    for (int s = 0; s < int(program.step.sequences.size()); s++) {
        const Sequence& sequence = program.step.sequences[s];
        const int given =
            uses_bf16(program, sequence) ? std::clamp(sequence.prompt - sequence.start, 0, sequence.length) : 0;
        const int bf16_rows = given * group(), other_rows = (sequence.length - given) * group();
        for (int head = 0; head < num_kv_heads; head++) {
            add_tiles(program, {s, head, 0, bf16_rows, 0, 0, 0, true}, kMaxPromptRows, num_partials);
            add_tiles(program, {s, head, bf16_rows, other_rows, 0, 0, 0, false}, kMaxAttendRows, num_partials);
        }
    }
    std::reverse(tiles_.begin(), tiles_.end());  // late rows see most keys: longest tasks first
    program.partials.reserve(num_partials, stride(program));
}

// Adds tiles of at most `most` of these rows. If one is enough, its splits of keys become tasks of their own.
void Attention::add_tiles(const Program& program, const Tile& rows, int most, int& num_partials) {
    const int start = program.step.sequences[rows.sequence].start, end = rows.first + rows.count;
    Tile tile = rows;
    for (; tile.first < end; tile.first += most) {
        tile.count = std::min(most, end - tile.first);
        const int earliest = start + tile.first / group(), last = start + (tile.first + tile.count - 1) / group();
        const int split_begin = first_key(earliest) / kSplitTokens, split_end = last / kSplitTokens + 1;
        if (rows.count > most || split_end - split_begin == 1) {
            tile.split_begin = split_begin, tile.split_end = split_end, tile.partial = kNone;
            tiles_.push_back(tile);
            continue;
        }
        merges_.push_back({tile.sequence, tile.head, tile.first, tile.count, split_end - split_begin, num_partials});
        for (int split = split_begin; split < split_end; split++, num_partials += tile.count) {
            tile.split_begin = split, tile.split_end = split + 1, tile.partial = num_partials;
            tiles_.push_back(tile);
        }
    }
}

// Storing keys and values needs a barrier, unless each sequence has one token and each head one tile: then only the
// task that stores them reads them.
void Attention::run(Program& program, int thread) const {
    ThreadScratch& scratch = program.scratch[thread];
    const int tokens = program.num_rows(q);
    const bool each_alone =
        int(tiles_.size()) == tokens * num_kv_heads &&
        std::ranges::all_of(program.step.sequences, [](const Sequence& s) { return s.length == 1; });
    if (!each_alone)
        program.team.for_each(tokens * num_kv_heads, std::max(1, tokens / 8),
                              [&](int i) { store(program, i / num_kv_heads, i % num_kv_heads); });
    program.team.for_each(int(tiles_.size()), 1, [&](int i) {
        if (each_alone) store(program, program.step.sequences[tiles_[i].sequence].row, tiles_[i].head);
        attend(program, tiles_[i], scratch);
    });
    if (!merges_.empty())
        program.team.for_each(int(merges_.size()), 1, [&](int i) { merge(program, merges_[i], scratch); });
}

void Attention::store(Program& program, int row, int head) const {
    for (int h = head * group(); h < (head + 1) * group(); h++)
        for (const HeadStep& step : q_steps)
            apply(program, step, row, key_dim, program.buffers[q].row(row) + h * key_dim);
    if (source != kNone) return;
    alignas(64) float value[kMaxHeadDim];  // a copy, since values may be what keys are before their steps
    std::copy_n(program.buffers[v].row(row) + head * value_dim, value_dim, value);
    for (const HeadStep& step : v_steps) apply(program, step, row, value_dim, value);
    float* key = program.buffers[k].row(row) + head * key_dim;
    for (const HeadStep& step : k_steps) apply(program, step, row, key_dim, key);

    const Sequence& s = program.step.sequences[program.step.sequence_of[row]];
    const int position = program.step.positions[row], page = s.pages[position / kPageTokens],
              slot = position % kPageTokens;
    program.cache.store(program.kernels, page, slot, layer, head, key, value);
}

void Attention::attend(Program& program, const Tile& tile, ThreadScratch& scratch) const {
    Partials& partials = tile.partial == kNone ? scratch.partials : program.partials;
    if (tile.partial == kNone) partials.reserve(tile.count, stride(program));
    AttendPartial* states = partials.start(std::max(tile.partial, 0), tile.count, stride(program));
    std::vector<AttendTask>& tasks = scratch.attend;
    tasks.clear();
    const int width = tile.in_bf16 ? whole_columns(key_dim) / 2 : kMaxHeadDim;  // floats of a query
    scratch.floats.resize(std::size_t(tile.count + kMaxAttendRows) * width);
    for (int first = 0; first < tile.count; first += kMaxAttendRows)
        tasks.push_back(take_queries(program, tile, first, scratch.floats.data() + first * width));
    for (int split = tile.split_begin; split < tile.split_end; split++)
        attend_split(program, tile, split, scratch, states);
    for (int r = 0; tile.partial == kNone && r < tile.count; r++)
        finish(program, tile.sequence, tile.head, tile.first + r, states[r]);
}

// A task of up to kMaxAttendRows rows of a tile from `first` on. Their queries are written to `to`.
AttendTask Attention::take_queries(const Program& program, const Tile& tile, int first, float* to) const {
    const Sequence& s = program.step.sequences[tile.sequence];
    AttendTask task{};
    task.num_rows = std::min(kMaxAttendRows, tile.count - first);
    task.q = to;
    task.key_dim = key_dim;
    task.value_dim = task.value_stride = stride(program);
    task.softcap = softcap;
    for (int r = 0; r < task.num_rows; r++) {
        const int row = tile.first + first + r, token = row / group(), position = s.start + token;
        const float* from = program.buffers[q].row(s.row + token) + (tile.head * group() + row % group()) * key_dim;
        alignas(64) float query[kMaxHeadDim];
        for (int i = 0; i < key_dim; i++) query[i] = from[i] * scale;
        write_query(program, tile.in_bf16, query, key_dim, r, to);
        task.first[r] = first_key(position);
        task.last[r] = position + 1;
    }
    return task;
}

void Attention::attend_split(Program& program, const Tile& tile, int split, ThreadScratch& scratch,
                             AttendPartial* states) const {
    const Sequence& s = program.step.sequences[tile.sequence];
    std::vector<AttendTask>& tasks = scratch.attend;
    const std::uint8_t *keys[kSplitPages], *values[kSplitPages];
    const int begin = split * kSplitTokens, last = tasks.back().last[tasks.back().num_rows - 1];
    int pages = 0;
    for (; pages < kSplitPages && begin + pages * kPageTokens < last; pages++) {
        const int page = s.pages[split * kSplitPages + pages];
        keys[pages] = program.cache.keys(page, layer, tile.head);
        values[pages] = program.cache.values(page, layer, tile.head);
    }
    for (AttendTask& task : tasks) task.begin = begin, task.keys = keys, task.values = values;
    const int format = int(program.cache.format());
    if (!tile.in_bf16) return program.kernels.attend[format](tasks[0], states);
    const int first_page = std::max(0, (tasks[0].first[0] - begin) / kPageTokens);
    const SplitFactors factors = scratch.split_factors(first_page, pages);
    program.kernels.load_split[format](tasks[0], factors);
    for (AttendTask& task : tasks) {
        program.kernels.attend_split(task, factors, states);
        states += task.num_rows;
    }
}

void Attention::merge(Program& program, const Merge& merge, ThreadScratch& scratch) const {
    for (int row = 0; row < merge.count; row++)
        finish(program, merge.sequence, merge.head, merge.first + row,
               fold_splits(program, merge.partial + row, merge.count, merge.num_splits, stride(program), scratch));
}

// A sink takes part in the softmax but has no value.
void Attention::finish(Program& program, int sequence, int head, int row, AttendPartial state) const {
    const int query_head = head * group() + row % group(), token = program.step.sequences[sequence].row + row / group();
    if (sinks != kNone) {
        alignas(64) float nothing[kMaxHeadDim] = {};
        program.kernels.fold(state, {program.vectors[sinks][query_head], 1, nothing}, stride(program));
    }
    write_result(state, value_dim, program.buffers[out].row(token) + query_head * value_dim);
}

}  // namespace freedive
