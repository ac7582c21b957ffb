// The gated delta rule. A task applies all tokens of a sequence to some columns of the state of one head, which stay in
// the nearest cache. Norms and gates are computed before; the inputs of draft tokens are stored after.
#include <algorithm>
#include <cmath>

#include "operations.h"

namespace freedive {
namespace {

constexpr float kUnitEps = 1e-6f;  // added to the sum of squares of q and k

// Rounds n up to a multiple of 16, the numbers of a vector.
int padded(int n) { return (n + 15) / 16 * 16; }

}  // namespace

int DeltaRule::key_head(int head) const {
    return tiled ? head % num_key_heads : head / (num_value_heads / num_key_heads);
}

void DeltaRule::add_constants(Program& program) {
    const std::vector<float> query(key_dim, 1.0f / float(key_dim)), key(key_dim, 1.0f / std::sqrt(float(key_dim)));
    query_weight = program.add_vector(query), key_weight = program.add_vector(key);
}

void DeltaRule::run(Program& program, int thread) const {
    const auto& sequences = program.step.sequences;
    const int rows = program.num_rows(out), parts = num_key_heads + 1;
    program.team.for_each(rows * parts, parts, [&](int i) {
        if (i % parts < num_key_heads)
            normalise(program, i / parts, i % parts);
        else
            make_gates(program, i / parts);
    });
    const int blocks = (value_dim + kDeltaColumns - 1) / kDeltaColumns, each = num_value_heads * blocks;
    program.team.for_each(int(sequences.size()) * each, 1, [&](int i) {
        const int head = i % each / blocks, first = i % blocks * kDeltaColumns;
        recur(program, sequences[i / each], head, first, program.scratch[thread]);
    });
    const auto has_drafts = [](const Sequence& s) { return s.end() > s.state_end; };
    if (std::any_of(sequences.begin(), sequences.end(), has_drafts))
        program.team.for_each(int(sequences.size()), 1, [&](int i) { keep_drafts(program, sequences[i]); });
}

// Scales a key head of q and k to length 1, and queries also by 1 / sqrt(key_dim): an RMS norm with equal weights.
void DeltaRule::normalise(Program& program, int row, int head) const {
    const float eps = kUnitEps / float(key_dim);
    float* query = program.buffers[q].row(row) + head * key_dim;
    float* key = program.buffers[k].row(row) + head * key_dim;
    program.kernels.rms_norm(query, program.vectors[query_weight].data(), key_dim, eps, query);
    program.kernels.rms_norm(key, program.vectors[key_weight].data(), key_dim, eps, key);
}

void DeltaRule::make_gates(Program& program, int row) const {
    const DecayGate gate{program.vectors[rate].data(), program.vectors[bias].data(), decay_bound};
    const int num_decays = program.buffers[decay].width;
    float *decays = program.buffers[decay].row(row), *betas = program.buffers[beta].row(row);
    program.kernels.decays(gate, decays, padded(num_decays), decays);
    std::fill(decays + num_decays, decays + padded(num_decays), 0.0f);
    for (int i = 0; i < num_value_heads; i++) betas[i] = 1 / (1 + std::exp(-betas[i]));
}

// Computes a block of columns of a head from the state of the sequence. It copies the state at the positions of
// `saves`, and draft tokens do not change the stored state.
void DeltaRule::recur(Program& program, const Sequence& s, int head, int first, ThreadScratch& scratch) const {
    const int columns = std::min(kDeltaColumns, value_dim - first);
    scratch.floats.resize(std::size_t(key_dim) * kDeltaColumns + kLine);
    float* block = scratch.floats.data();
    while (std::uintptr_t(block) % kLine) block++;
    const auto part = [&](int slot) {
        return program.states.state(slot, state) + std::size_t(head) * key_dim * value_dim + first;
    };
    const auto write = [&](int slot) {
        for (int i = 0; i < key_dim; i++)
            std::copy_n(block + i * kDeltaColumns, columns, part(slot) + std::size_t(i) * value_dim);
    };
    std::fill_n(block, std::size_t(key_dim) * kDeltaColumns, 0.0f);
    for (int i = 0; s.state_begin && i < key_dim; i++)
        std::copy_n(part(s.slot) + std::size_t(i) * value_dim, columns, block + i * kDeltaColumns);
    for (int position = s.state_begin;;) {
        for (const Save& save : s.saves)
            if (save.position == position) write(save.slot);
        if (position == s.state_end) write(s.slot);
        if (position == s.end()) return;
        DeltaTask task =
            position < s.start ? drafted(program, s, position, head) : computed(program, s, position, head);
        task.v.first += first, task.num_columns = columns;
        if (task.out) task.out += first;
        task.num_tokens = run_end(s, position) - position;
        program.kernels.delta_rule(task, block);
        position += task.num_tokens;
    }
}

// The end of the run of tokens from `position` on that have one source, and inside which the state is not copied.
int DeltaRule::run_end(const Sequence& s, int position) const {
    int end = position < s.start ? s.start : s.end();
    for (const Save& save : s.saves)
        if (save.position > position) end = std::min(end, save.position);
    return s.state_end > position ? std::min(end, s.state_end) : end;
}

// The tokens of this step from `position` on.
DeltaTask DeltaRule::computed(const Program& program, const Sequence& s, int position, int head) const {
    const auto rows = [&](int buffer, int column) {
        const Buffer& from = program.buffers[buffer];
        return FloatRows{from.row(s.row + position - s.start) + column, from.stride};
    };
    const Buffer& to = program.buffers[out];
    const int key_column = key_head(head) * key_dim;
    return {.num_tokens = 0,
            .key_dim = key_dim,
            .num_columns = 0,
            .by_channel = by_channel,
            .q = rows(q, key_column),
            .k = rows(k, key_column),
            .v = rows(v, head * value_dim),
            .beta = rows(beta, head),
            .decay = rows(decay, head * (by_channel ? key_dim : 1)),
            .out = to.row(s.row + position - s.start) + head * value_dim,
            .out_stride = to.stride};
}

// Accepted draft tokens of the previous step from `position` on: k, v, decays and betas are stored one after another.
DeltaTask DeltaRule::drafted(const Program& program, const Sequence& s, int position, int head) const {
    const int k_dim = num_key_heads * key_dim, v_dim = num_value_heads * value_dim;
    const int num_decays = program.buffers[decay].width, stride = input_dim(program);
    const float* from = program.states.drafts(s.slot, state) + std::size_t(position - s.state_begin) * stride;
    const FloatRows key{from + key_head(head) * key_dim, stride};
    return {.num_tokens = 0,
            .key_dim = key_dim,
            .num_columns = 0,
            .by_channel = by_channel,
            .q = key,  // not used: the results of these tokens were computed in the previous step
            .k = key,
            .v = {from + k_dim + head * value_dim, stride},
            .beta = {from + k_dim + v_dim + num_decays + head, stride},
            .decay = {from + k_dim + v_dim + head * (by_channel ? key_dim : 1), stride},
            .out = nullptr,
            .out_stride = 0};
}

void DeltaRule::keep_drafts(Program& program, const Sequence& s) const {
    float* to = program.states.drafts(s.slot, state);
    for (int position = s.state_end; position < s.end(); position++)
        for (const int buffer : {k, v, decay, beta}) {
            const Buffer& from = program.buffers[buffer];
            to = std::copy_n(from.row(s.row + position - s.start), from.width, to);
        }
}

int DeltaRule::input_dim(const Program& program) const {
    return num_key_heads * key_dim + num_value_heads * (value_dim + 1) + program.buffers[decay].width;
}

void GatedNorm::run(Program& program, int) const {
    const Buffer &from = program.buffers[in], &to = program.buffers[out];
    program.team.for_each(program.num_rows(out), 1, [&](int row) {
        for (int first = 0; first < to.width; first += head_dim)
            program.kernels.rms_norm(from.row(row) + first, program.vectors[weight].data(), head_dim, eps,
                                     to.row(row) + first);
        program.kernels.glu({activation, 0}, program.buffers[gate].row(row), to.row(row), to.stride, to.row(row));
    });
}

}  // namespace freedive
