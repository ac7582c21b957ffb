// Mixture of experts: products grouped by expert. A token's experts add up in order of their index, so that its result
// does not depend on what it is computed beside.
#include <algorithm>
#include <cmath>

#include "input.h"

namespace freedive {
namespace {

constexpr int kBandPanels = 8;  // of the output, that a task sums up over all experts

using Choices = std::span<const Choice>;

Choices choices_of(const Groups& groups, int expert) {
    return {groups.choices.data() + groups.first[expert], groups.choices.data() + groups.first[expert + 1]};
}

// Calls block(choices) for all of them, few enough at a time for one set of products.
template <class Block>
void for_blocks(Choices choices, Block&& block) {
    for (std::size_t first = 0; first < choices.size(); first += kBlockRows)
        block(choices.subspan(first, std::min<std::size_t>(kBlockRows, choices.size() - first)));
}

Experts::Matrix moved(Experts::Matrix matrix, std::size_t bytes) {
    matrix.weight.data += bytes;
    if (matrix.bias) matrix.bias += bytes / sizeof(float);
    return matrix;
}

void multiply(const Machine& m, const Experts::Matrix& matrix, int panel, const void* const* x, int rows,
              Products& out) {
    const Weight& w = matrix.weight;
    m.kernels.linear[int(w.format)](w.panel(panel), w.k, x, rows, out.at);
    const int first = panel * kPanelRows;
    if (matrix.bias) add_bias(out, matrix.bias + first, std::min(kPanelRows, w.rows - first), rows);
}

bool reads_codes(const Experts::Expert& expert) {
    return is_quantised(expert.gate.weight.format) || is_quantised(expert.up.weight.format);
}

}  // namespace

void Experts::run(Machine& m, int thread) const {
    const bool quantised = reads_codes(first) || (shared && reads_codes(*shared));
    const Preparation preparation(m, thread, in, norm, quantised);
    const int rows = m.num_rows(in), first_row = rows == 1 ? m.own_row(thread) : 0;
    for_rows(m, rows, [&](int row) {
        preparation.make(row);
        router.route(m, m.buffers[logits].row(row), m.buffers[routes].row(first_row + row));
    });
    Groups& groups = m.locals[thread].groups;
    group(m, first_row, groups);
    run_glu(m, preparation.input, groups);
    quantise_whole(m);
    run_down(m, groups);
}

Experts::Expert Experts::expert(int index) const {
    if (index == router.num_experts) return *shared;
    const std::size_t bytes = stride * index;
    return {moved(first.gate, bytes), moved(first.up, bytes), moved(first.down, bytes), first.glu};
}

float Experts::shared_weight(const Machine& m, int token) const {
    return shared_gate == kNone ? 1 : 1 / (1 + std::exp(-m.buffers[shared_gate].row(token)[0]));
}

// Sorts the step's choices by expert; within an expert they stay in order of tokens.
void Experts::group(const Machine& m, int first_row, Groups& groups) const {
    const int rows = m.num_rows(in), routed = router.num_experts, chosen = router.num_chosen;
    const auto route = [&](int token) { return m.buffers[routes].row(first_row + token); };
    groups.first.assign(routed + 2, 0);
    groups.choices.resize(std::size_t(rows) * num_places());
    groups.active.clear();
    for (int t = 0; t < rows; t++)
        for (int j = 0; j < chosen; j++) groups.first[int(route(t)[j]) + 1]++;
    groups.first[routed + 1] = shared ? rows : 0;
    for (int e = 0; e <= routed; e++) {
        if (groups.first[e + 1]) groups.active.push_back(e);
        groups.first[e + 1] += groups.first[e];
    }
    std::vector<int> next(groups.first.begin(), groups.first.end() - 1);
    for (int t = 0; t < rows; t++) {
        for (int j = 0; j < chosen; j++) {
            const float weight = route(t)[chosen + j];
            groups.choices[next[int(route(t)[j])]++] =
                router.weighs_input ? Choice{t, j, weight, 1} : Choice{t, j, 1, weight};
        }
        if (shared) groups.choices[next[routed]++] = {t, chosen, 1, shared_weight(m, t)};
    }
}

// hidden[token, place] = act(gate x) * (up x), by (expert, panel). The shared expert comes last and has a width of its
// own.
void Experts::run_glu(Machine& m, const Input& input, const Groups& groups) const {
    const int panels = num_panels(first.gate.weight.rows), routed = int(groups.active.size()) - (shared ? 1 : 0);
    const int tasks = routed * panels + (shared ? num_panels(shared->gate.weight.rows) : 0);
    const int grain = std::max(1, std::min(panels, tasks / (m.team.size() * 8)));
    m.team.for_each(tasks, grain, [&](int task) {
        const int at = std::min(task / panels, routed), index = groups.active[at];
        const Expert active = expert(index);
        for_blocks(choices_of(groups, index),
                   [&](Choices choices) { make_hidden(m, input, active, task - at * panels, choices); });
    });
}

// One panel of hidden rows. If `down` reads codes they become codes here, unless that depends on the whole row.
void Experts::make_hidden(const Machine& m, const Input& input, const Expert& expert, int panel,
                          Choices choices) const {
    const int rows = int(choices.size());
    const void *for_gate[kBlockRows] = {}, *for_up[kBlockRows] = {};
    for (int r = 0; r < rows; r++) {
        for_gate[r] = input.row(choices[r].token, is_quantised(expert.gate.weight.format));
        for_up[r] = input.row(choices[r].token, is_quantised(expert.up.weight.format));
    }
    Products a, b;
    multiply(m, expert.gate, panel, for_gate, rows, a);
    multiply(m, expert.up, panel, for_up, rows, b);
    for (int r = 0; router.weighs_input && r < rows; r++)
        for (int i = r * kPanelRows; i < (r + 1) * kPanelRows; i++)
            a.at[i] *= choices[r].input_weight, b.at[i] *= choices[r].input_weight;
    m.kernels.glu(expert.glu, a.at, b.at, rows * kPanelRows, a.at);
    for (int r = 0; r < rows; r++) {
        const float* made = a.at + r * kPanelRows;
        float* row = hidden_row(m, choices[r]);
        if (is_quantised(expert.down.weight.format) && !m.care(Rows::Tokens, choices[r].token))
            m.kernels.quantise(made, kGroup, 0, (QuantisedGroup*)row + panel);
        else
            std::copy_n(made, kPanelRows, row + panel * kPanelRows);
    }
}

// A place has room for floats; codes, which take less, are kept there in their stead.
static_assert(kPanelRows == kGroup && sizeof(QuantisedGroup) <= kGroup * sizeof(float));
float* Experts::hidden_row(const Machine& m, const Choice& choice) const {
    return m.hidden.as<float>() + std::size_t(choice.token) * hidden_width() + choice.place * first.hidden_stride();
}

// Which groups of a row keep low halves, where not all do, is known when the whole row is. Codes replace their floats
// in order, so that none is overwritten before it is read.
void Experts::quantise_whole(Machine& m) const {
    const auto is_choosy = [&](int row) { return m.care(Rows::Tokens, row) > 0; };
    const int rows = m.num_rows(in);
    bool any = false;
    for (int row = 0; row < rows && !any; row++) any = is_choosy(row);
    if (!any) return;
    m.team.for_each(rows * num_places(), 4, [&](int i) {
        const Choice choice{i / num_places(), i % num_places(), 1, 1};
        const Weight& down = (choice.place < router.num_chosen ? first : *shared).down.weight;
        if (!is_quantised(down.format) || !is_choosy(choice.token)) return;
        float* row = hidden_row(m, choice);
        m.kernels.quantise(row, down.k, m.care(Rows::Tokens, choice.token), (QuantisedGroup*)row);
    });
}

// out = residuals + factor * sum of weight * down(hidden). A task owns a band of the output over all experts, so that
// what it reads of each is one stream; narrow bands would jump too often from one to the next.
void Experts::run_down(Machine& m, const Groups& groups) const {
    const int panels = num_panels(first.down.weight.rows);
    const int width = std::max(1, std::min(kBandPanels, panels / (m.team.size() * 2)));
    m.team.for_each((panels + width - 1) / width, 1, [&](int band) {
        const float nothing[kPanelRows] = {};
        const int begin = band * width, end = std::min(begin + width, panels);
        for (int t = 0; t < m.num_rows(in); t++)
            for (int p = begin; p < end; p++) epilogue.write(m, nothing, m.buffers[out], t, p * kPanelRows, kPanelRows);
        for (const int index : groups.active) {
            const Expert active = expert(index);
            for (int p = begin; p < end; p++)
                for_blocks(choices_of(groups, index), [&](Choices choices) { add_down(m, active, p, choices); });
        }
    });
}

// Adds what an expert makes of its tokens to one panel of their outputs.
void Experts::add_down(const Machine& m, const Expert& expert, int panel, Choices choices) const {
    const int rows = int(choices.size());
    const void* x[kBlockRows] = {};
    for (int r = 0; r < rows; r++) x[r] = hidden_row(m, choices[r]);
    Products products;
    multiply(m, expert.down, panel, x, rows, products);
    for (int r = 0; r < rows; r++) {
        const float weight = epilogue.factor * choices[r].weight;
        float* y = m.buffers[out].row(choices[r].token) + panel * kPanelRows;
        for (int i = 0; i < kPanelRows; i++) y[i] += weight * products.at[r * kPanelRows + i];
    }
}

}  // namespace freedive
