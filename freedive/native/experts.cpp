// Mixture of experts: routes, then products grouped by expert. A token's experts add up in order of their index, so
// that its result does not depend on what it is computed beside.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "input.h"

namespace freedive {
namespace {

constexpr int kBandPanels = 8;  // of the output, that a task sums up over all experts
constexpr float kUnchosen = -std::numeric_limits<float>::infinity();

void softmax(float* x, int n) {
    const float top = *std::max_element(x, x + n);
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] = std::exp(x[i] - top);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

// The `count` best of merit[first, last), best first; of equals the lower index. They are taken out of `merit`.
int* take_best(float* merit, int first, int last, int count, int* out) {
    for (; count > 0; count--) {
        const int best = int(std::max_element(merit + first, merit + last) - merit);
        merit[best] = kUnchosen;
        *out++ = best;
    }
    return out;
}

float strength(const float* group, int size, bool best_two) {
    float first = kUnchosen, second = kUnchosen;
    for (int i = 0; i < size; i++) {
        if (group[i] > first)
            second = std::exchange(first, group[i]);
        else if (group[i] > second)
            second = group[i];
    }
    return best_two ? first + second : first;
}

// Takes all groups but the `kept` strongest out of the choice.
void keep_groups(float* merit, int size, int groups, int kept, bool best_two) {
    float strengths[kMaxExperts];
    int order[kMaxExperts];
    for (int g = 0; g < groups; g++) strengths[g] = strength(merit + g * size, size, best_two);
    take_best(strengths, 0, groups, kept, order);
    for (int g = 0; g < groups; g++)
        if (std::find(order, order + kept, g) == order + kept) std::fill_n(merit + g * size, size, kUnchosen);
}

}  // namespace

void Route::run(Machine& m, int) const {
    m.team.for_each(m.num_rows(in), 4, [&](int row) { route(m, m.buffers[in].row(row), m.buffers[out].row(row)); });
}

void Route::route(const Machine& m, const float* logits, float* result) const {
    float scores[kMaxExperts] = {}, merit[kMaxExperts];
    int chosen[kMaxExperts];
    std::copy_n(logits, num_experts, scores);
    if (sigmoid)
        for (int e = 0; e < num_experts; e++) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    else
        softmax(scores, num_experts);
    for (int e = 0; e < num_experts; e++) merit[e] = scores[e] + (choice_bias == kNone ? 0 : m.vectors[choice_bias][e]);
    const int size = num_experts / num_groups;
    if (group_choice == GroupChoice::Each) {
        int* next = chosen;
        for (int g = 0; g < num_groups; g++)
            next = take_best(merit, g * size, (g + 1) * size, num_chosen / num_groups, next);
    } else {
        if (kept_groups < num_groups)
            keep_groups(merit, size, num_groups, kept_groups, group_choice == GroupChoice::BestTwo);
        take_best(merit, 0, num_experts, num_chosen, chosen);
    }
    float sum = 1e-20f;
    for (int j = 0; j < num_chosen; j++) sum += scores[chosen[j]];
    for (int j = 0; j < num_chosen; j++) {
        float weight = scores[chosen[j]];
        if (renormalise) weight /= sum;
        weight *= scale;
        if (expert_scale != kNone) weight *= m.vectors[expert_scale][chosen[j]];
        result[j] = float(chosen[j]);
        result[num_chosen + j] = weight;
    }
}

// Sorts the step's (token, place) pairs by expert; within an expert they stay in order.
void Experts::group(Machine& m) const {
    const Buffer& from = m.buffers[routes];
    const int rows = m.num_rows(in);
    Groups& groups = m.groups;
    groups.first.assign(num_experts + 1, 0);
    groups.slots.resize(std::size_t(rows) * num_chosen);
    groups.active.clear();
    for (int t = 0; t < rows; t++)
        for (int j = 0; j < num_chosen; j++) groups.first[int(from.row(t)[j]) + 1]++;
    for (int e = 0; e < num_experts; e++) {
        if (groups.first[e + 1]) groups.active.push_back(e);
        groups.first[e + 1] += groups.first[e];
    }
    std::vector<int> next(groups.first.begin(), groups.first.end() - 1);
    for (int t = 0; t < rows; t++)
        for (int j = 0; j < num_chosen; j++) groups.slots[next[int(from.row(t)[j])]++] = t * num_chosen + j;
}

void Experts::multiply(const Machine& m, const Part& part, int expert, int panel, const void* const* x, int rows,
                       Products& out) const {
    const std::uint8_t* record = data + stride * expert;
    const std::size_t skip = panel_bytes(part.format, part.k) * panel;
    m.kernels.linear[int(part.format)](record + part.offset + skip, part.k, x, rows, out.at);
    if (part.bias == kNoBias) return;
    const int first = panel * kPanelRows;
    add_bias(out, (const float*)(record + part.bias) + first, std::min(kPanelRows, part.rows - first), rows);
}

void Experts::run(Machine& m, int thread) const {
    const bool quantised = is_quantised(gate.format) || is_quantised(up.format);
    const Input input = ready(m, thread, in, norm, quantised);
    if (thread == 0) group(m);
    m.team.barrier();
    run_glu(m, input);
    run_down(m, ready_hidden(m));
}

// hidden[token, place] = act(gate x) * (up x), by (expert, panel).
void Experts::run_glu(Machine& m, const Input& input) const {
    const Groups& groups = m.groups;
    const int panels = num_panels(gate.rows), hidden_stride = panels * kPanelRows;
    const int tasks = int(groups.active.size()) * panels;
    m.team.for_each(tasks, std::max(1, std::min(panels, tasks / (m.team.size() * 8))), [&](int task) {
        const int expert = groups.active[task / panels], panel = task % panels;
        const int begin = groups.first[expert], end = groups.first[expert + 1];
        for (int row = begin; row < end; row += kBlockRows) {
            const int rows = std::min(kBlockRows, end - row);
            const int* slots = groups.slots.data() + row;
            const void *for_gate[kBlockRows], *for_up[kBlockRows];
            for (int r = 0; r < rows; r++) {
                for_gate[r] = input.row(slots[r] / num_chosen, is_quantised(gate.format));
                for_up[r] = input.row(slots[r] / num_chosen, is_quantised(up.format));
            }
            Products a, b;
            multiply(m, gate, expert, panel, for_gate, rows, a);
            multiply(m, up, expert, panel, for_up, rows, b);
            for (int r = 0; weighs_input && r < rows; r++) {
                const float weight = share(m, slots[r]);
                for (int i = r * kPanelRows; i < (r + 1) * kPanelRows; i++) a.at[i] *= weight, b.at[i] *= weight;
            }
            m.kernels.glu(glu, a.at, b.at, rows * kPanelRows, a.at);
            for (int r = 0; r < rows; r++)
                std::copy_n(a.at + r * kPanelRows, kPanelRows,
                            hidden_row(m, slots[r], hidden_stride) + panel * kPanelRows);
        }
    });
}

float* Experts::hidden_row(const Machine& m, int slot, int stride) const {
    return m.buffers[hidden].row(slot / num_chosen) + (slot % num_chosen) * stride;
}

float Experts::share(const Machine& m, int slot) const {
    return m.buffers[routes].row(slot / num_chosen)[num_chosen + slot % num_chosen];
}

// The hidden rows in the forms that `down` reads; rows of the result are slots.
Input Experts::ready_hidden(Machine& m) const {
    const int groups = down.k / kGroup, hidden_stride = num_panels(gate.rows) * kPanelRows;
    QuantisedGroup* codes = m.codes.as<QuantisedGroup>();
    if (is_quantised(down.format))
        m.team.for_each(m.num_rows(in) * num_chosen, 4, [&](int slot) {
            const float care = m.care(Rows::Tokens, slot / num_chosen);
            m.kernels.quantise(hidden_row(m, slot, hidden_stride), down.k, care, codes + std::size_t(slot) * groups);
        });
    return {codes, m.buffers[hidden].row(0), groups, hidden_stride};
}

// out = residuals + factor * sum of share * down(hidden). A task owns a band of the output over all experts, so that
// what it reads of each is one stream.
void Experts::run_down(Machine& m, const Input& input) const {
    const int panels = num_panels(down.rows), width = std::max(1, std::min(kBandPanels, panels / (m.team.size() * 2)));
    m.team.for_each((panels + width - 1) / width, 1, [&](int band) {
        const int first = band * width, last = std::min(first + width, panels);
        const float nothing[kPanelRows] = {};
        for (int t = 0; t < m.num_rows(in); t++)
            for (int p = first; p < last; p++)
                epilogue.write(m, nothing, m.buffers[out], t, p * kPanelRows, kPanelRows);
        for (const int expert : m.groups.active)
            for (int p = first; p < last; p++) add_expert(m, input, expert, p);
    });
}

// Adds what an expert makes of its tokens to one panel of their outputs.
void Experts::add_expert(Machine& m, const Input& input, int expert, int panel) const {
    const int begin = m.groups.first[expert], end = m.groups.first[expert + 1];
    for (int row = begin; row < end; row += kBlockRows) {
        const int rows = std::min(kBlockRows, end - row);
        const int* slots = m.groups.slots.data() + row;
        const void* x[kBlockRows];
        for (int r = 0; r < rows; r++) x[r] = input.row(slots[r], is_quantised(down.format));
        Products products;
        multiply(m, down, expert, panel, x, rows, products);
        for (int r = 0; r < rows; r++) {
            const float weight = epilogue.factor * (weighs_input ? 1.0f : share(m, slots[r]));
            float* y = m.buffers[out].row(slots[r] / num_chosen) + panel * kPanelRows;
            for (int i = 0; i < kPanelRows; i++) y[i] += weight * products.at[r * kPanelRows + i];
        }
    }
}

}  // namespace freedive
