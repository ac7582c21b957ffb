// Mixture of experts: products grouped by expert. A token's experts are added in the order of their index, so that its
// result does not depend on the other rows of the step.
#include <algorithm>
#include <cmath>

#include "activations.h"
#include "panel_products.h"

namespace freedive {
namespace {

constexpr int kBandPanels = kTaskPanels;  // panels of the output that one task sums over all experts

using Choices = std::span<const Choice>;

// The choices of experts first to last.
Choices choices_of(const Groups& groups, int first, int last) {
    return {groups.choices.data() + groups.first[first], groups.choices.data() + groups.first[last + 1]};
}

// The choices of an expert, first those of rows in bfloat16.
struct SplitChoices {
    Choices in_bf16, others;
};
SplitChoices split_choices(const Groups& groups, int expert) {
    const Choices all = choices_of(groups, expert, expert);
    const std::size_t first = groups.others[expert] - groups.first[expert];
    return {all.first(first), all.subspan(first)};
}

Matrix matrix_of(const Experts::Part& part, const std::uint8_t* record) {
    return {{part.format, part.rows, part.k, record + part.offset},
            part.bias ? (const float*)(record + *part.bias) : nullptr};
}

void add_formats(const Program& program, const Experts::Expert& expert, Formats& formats) {
    for (const Matrix* matrix : {&expert.gate, &expert.up}) formats.add(program, matrix->weight.format);
}

}  // namespace

void Experts::run(Program& program, int thread) const {
    Formats formats;
    add_formats(program, routed, formats);
    if (shared) add_formats(program, *shared, formats);
    const Preparation preparation(program, thread, in, norm, formats);
    const int rows = program.num_rows(in), first_row = rows == 1 ? program.own_row(thread) : 0;
    const Routes& made = program.routes[routes];
    std::span<const std::uint8_t> cached;
    if (program.cache_preference > 0) cached = program.experts->cached(layer);
    for_rows(program, rows, [&](int row) {
        preparation.make(row);
        const bool prefers = !cached.empty() && program.step.is_generated(row);
        router.route(program, program.buffers[logits].row(row), prefers ? cached : std::span<const std::uint8_t>(),
                     made.experts_of(first_row + row), made.weights_of(first_row + row));
    });
    Groups& groups = program.scratch[thread].groups;
    group(program, first_row, groups);
    const std::span<const int> active(groups.active), chosen = active.first(active.size() - (shared ? 1 : 0));
    for (int begin = 0; begin < int(chosen.size());) {
        const Wave wave = program.experts->acquire(layer, chosen, begin);
        const bool is_last = wave.end == int(chosen.size());
        const auto experts = active.subspan(begin, (is_last ? active.size() : wave.end) - begin);
        run_glu(program, thread, preparation.input, groups, wave.order, is_last && shared);
        quantise_whole(program, choices_of(groups, experts.front(), experts.back()));
        run_down(program, thread, groups, experts, begin == 0);
        begin = wave.end;
    }
}

Experts::Expert Experts::expert(const Program& program, int index) const {
    if (index == router.num_experts) return *shared;
    const std::uint8_t* record = program.experts->record(layer, index);
    return {matrix_of(records.gate, record), matrix_of(records.up, record), matrix_of(records.down, record),
            records.glu};
}

float Experts::shared_weight(const Program& program, int token) const {
    return shared_gate == kNone ? 1 : 1 / (1 + std::exp(-program.buffers[shared_gate].row(token)[0]));
}

// Sorts the step's choices by expert, and within an expert by the arithmetic of their rows.
void Experts::group(const Program& program, int first_row, Groups& groups) const {
    const int rows = program.num_rows(in), routed = router.num_experts, chosen = router.num_chosen;
    const Routes& made = program.routes[routes];
    groups.first.assign(routed + 2, 0);
    groups.choices.resize(std::size_t(rows) * num_places());
    groups.active.clear();
    for (int t = 0; t < rows; t++)
        for (int j = 0; j < chosen; j++) groups.first[made.experts_of(first_row + t)[j] + 1]++;
    groups.first[routed + 1] = shared ? rows : 0;
    for (int e = 0; e <= routed; e++) {
        if (groups.first[e + 1]) groups.active.push_back(e);
        groups.first[e + 1] += groups.first[e];
    }
    std::vector<int> next(groups.first.begin(), groups.first.end() - 1);
    const auto place = [&](std::span<const int> tokens) {
        for (const int t : tokens) {
            const std::int32_t* experts = made.experts_of(first_row + t);
            for (int j = 0; j < chosen; j++) {
                const float weight = made.weights_of(first_row + t)[j];
                groups.choices[next[experts[j]]++] =
                    router.weighs_input ? Choice{t, j, weight, 1} : Choice{t, j, 1, weight};
            }
            if (shared) groups.choices[next[routed]++] = {t, chosen, 1, shared_weight(program, t)};
        }
    };
    place(program.split(in).in_bf16);
    groups.others = next;
    place(program.split(in).others);
}

// Computes hidden[token, place] = act(gate x) * (up x) for `experts`, and for the shared expert, which may have another
// width. A task is a panel of an expert, or a few if there are rows in bfloat16.
void Experts::run_glu(Program& program, int thread, const Input& input, const Groups& groups,
                      std::span<const int> experts, bool and_shared) const {
    const int width = program.split(in).in_bf16.empty() ? 1 : kTaskPanels / 2, count = int(experts.size());
    const auto tasks_of = [&](const Expert& e) { return (num_panels(e.gate.weight.rows) + width - 1) / width; };
    const int each = tasks_of(routed), tasks = count * each + (and_shared ? tasks_of(*shared) : 0);
    const int grain = std::max(1, std::min(each, tasks / (program.team.size() * 8)));
    program.team.for_each(tasks, grain, [&](int task) {
        const int at = std::min(task / each, count), index = at < count ? experts[at] : router.num_experts;
        const Expert active = expert(program, index);
        const int first = (task - at * each) * width;
        const int last = std::min(first + width, num_panels(active.gate.weight.rows));
        const auto [in_bf16, others] = split_choices(groups, index);
        for_blocks(in_bf16, kMostRows,
                   [&](Choices choices) { make_hidden(program, thread, input, active, first, last, choices); });
        for (int panel = first; panel < last; panel++)
            for_blocks(others, kBlockRows,
                       [&](Choices choices) { make_hidden(program, input, active, panel, choices); });
    });
}

// Computes one panel of hidden rows.
void Experts::make_hidden(const Program& program, const Input& input, const Expert& expert, int panel,
                          Choices choices) const {
    const int rows = int(choices.size());
    const void *for_gate[kBlockRows] = {}, *for_up[kBlockRows] = {};
    for (int r = 0; r < rows; r++) {
        for_gate[r] = input.row(choices[r].token, is_quantised(expert.gate.weight.format));
        for_up[r] = input.row(choices[r].token, is_quantised(expert.up.weight.format));
    }
    Products a, b;
    multiply(program, expert.gate, panel, for_gate, rows, a);
    multiply(program, expert.up, panel, for_up, rows, b);
    write_hidden(program, expert, panel, choices, a.at, b.at);
}

// Computes panels [first, last) of hidden rows of prompts.
void Experts::make_hidden(Program& program, int thread, const Input& input, const Expert& expert, int first, int last,
                          Choices choices) const {
    const ManyProducts products =
        multiply_rows(program, thread, {expert.gate, expert.up}, first, last, int(choices.size()),
                      [&](int r, bool packed) { return input.row(choices[r].token, packed); });
    for (int p = first; p < last; p++)
        write_hidden(program, expert, p, choices, products.panel(0, p), products.panel(1, p));
}

// Writes act(gate) * up of one panel, as what `down` reads: bfloat16, codes unless they depend on the whole row, or
// floats.
void Experts::write_hidden(const Program& program, const Expert& expert, int panel, Choices choices, float* gate,
                           float* up) const {
    const int rows = int(choices.size());
    const Format down = expert.down.weight.format;
    for (int r = 0; router.weighs_input && r < rows; r++)
        for (int i = r * kPanelRows; i < (r + 1) * kPanelRows; i++)
            gate[i] *= choices[r].input_weight, up[i] *= choices[r].input_weight;
    program.kernels.glu(expert.glu, gate, up, rows * kPanelRows, gate);
    for (int r = 0; r < rows; r++) {
        const float* made = gate + r * kPanelRows;
        const int token = choices[r].token;
        float* row = hidden_row(program, choices[r]);
        if (program.multiplies_in_bf16(down) && program.is_bf16(Rows::Tokens, token))
            program.kernels.to_bf16(made, kPanelRows, (std::uint16_t*)row + panel * kPanelRows);
        else if (is_quantised(down) && !program.outlier_threshold(Rows::Tokens, token))
            program.kernels.quantise(made, kGroup, 0, (QuantisedGroup*)row + panel);
        else
            std::copy_n(made, kPanelRows, row + panel * kPanelRows);
    }
}

// The memory of one choice, with room for floats. Codes and bfloat16 need less room and are stored in the same place.
static_assert(kPanelRows == kGroup && sizeof(QuantisedGroup) <= kGroup * sizeof(float));
float* Experts::hidden_row(const Program& program, const Choice& choice) const {
    return program.hidden.as<float>() + std::size_t(choice.token) * hidden_width() +
           choice.place * routed.hidden_stride();
}

// Quantises whole hidden rows, if the groups that keep low halves depend on the whole row. Codes replace the floats in
// order, so that no float is overwritten before it is read.
void Experts::quantise_whole(Program& program, Choices choices) const {
    const auto has_threshold = [&](int row) {
        return !program.is_bf16(Rows::Tokens, row) && program.outlier_threshold(Rows::Tokens, row) > 0;
    };
    if (std::ranges::none_of(program.split(in).others, has_threshold)) return;
    program.team.for_each(int(choices.size()), 4, [&](int i) {
        const Choice& choice = choices[i];
        const Weight& down = (choice.place < router.num_chosen ? routed : *shared).down.weight;
        if (!is_quantised(down.format) || !has_threshold(choice.token)) return;
        float* row = hidden_row(program, choice);
        program.kernels.quantise(row, down.k, program.outlier_threshold(Rows::Tokens, choice.token),
                                 (QuantisedGroup*)row);
    });
}

// out = residuals + factor * sum of weight * down(hidden). A task computes a band of the output over all experts of the
// wave, and reads one stream of each expert's weights; in narrower bands these streams would be too short.
void Experts::run_down(Program& program, int thread, const Groups& groups, std::span<const int> wave,
                       bool is_first) const {
    const int panels = num_panels(routed.down.weight.rows);
    const int width = std::max(1, std::min(kBandPanels, panels / (program.team.size() * 2)));
    program.team.for_each((panels + width - 1) / width, 1, [&](int band) {
        const float nothing[kPanelRows] = {};
        const int begin = band * width, end = std::min(begin + width, panels);
        for (int t = 0; is_first && t < program.num_rows(in); t++)
            for (int p = begin; p < end; p++)
                epilogue.write(program, nothing, program.buffers[out], t, p * kPanelRows, kPanelRows);
        for (const int index : wave) {
            const Expert active = expert(program, index);
            const auto [in_bf16, others] = split_choices(groups, index);
            for_blocks(in_bf16, kMostRows,
                       [&](Choices choices) { add_down(program, thread, active, begin, end, choices); });
            for (int p = begin; p < end; p++)
                for_blocks(others, kBlockRows, [&](Choices choices) { add_down(program, active, p, choices); });
        }
    });
}

// Adds an expert's outputs for its tokens to one panel of theirs.
void Experts::add_down(const Program& program, const Expert& expert, int panel, Choices choices) const {
    const int rows = int(choices.size());
    const void* x[kBlockRows] = {};
    for (int r = 0; r < rows; r++) x[r] = hidden_row(program, choices[r]);
    Products products;
    multiply(program, expert.down, panel, x, rows, products);
    for (int r = 0; r < rows; r++) add_weighed(program, panel, choices[r], products.at + r * kPanelRows);
}

// The same to panels [first, last) for rows of prompts.
void Experts::add_down(Program& program, int thread, const Expert& expert, int first, int last, Choices choices) const {
    const ManyProducts products = multiply_rows(program, thread, {expert.down}, first, last, int(choices.size()),
                                                [&](int r, bool) { return hidden_row(program, choices[r]); });
    for (std::size_t r = 0; r < choices.size(); r++)
        for (int p = first; p < last; p++) add_weighed(program, p, choices[r], products.panel(0, p) + r * kPanelRows);
}

void Experts::add_weighed(const Program& program, int panel, const Choice& choice, const float* products) const {
    const float weight = epilogue.factor * choice.weight;
    float* y = program.buffers[out].row(choice.token) + panel * kPanelRows;
    for (int i = 0; i < kPanelRows; i++) y[i] += weight * products[i];
}

}  // namespace freedive
