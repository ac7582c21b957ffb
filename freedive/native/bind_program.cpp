// Python's view of programs: record one, give it weights, take steps. Every index and width is checked as it comes.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>

#include "bind.h"
#include "cpu.h"
#include "operations.h"

namespace freedive {
namespace {

using Pages = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = std::tuple<int, int, int>;                         // weight, bias, out
using Norm = std::tuple<int, float>;                              // weights, eps
using Head = std::tuple<int, int, int, float, float>;             // kind, operand, dim, a, b
using Part = std::tuple<int, int, int, std::size_t, nb::object>;  // format, rows, k, offset, offset of the bias or None
using Named = std::tuple<int, int>;                               // weight, bias
using Shared = std::tuple<Named, Named, Named, int, float>;       // gate, up, down, activation, limit

std::span<const std::int32_t> view(const Ints& a) { return {a.data(), a.size()}; }
Activation activation(int number) { return enumerator<Activation>(number, 3); }

// A machine and the arrays that its weights lie in.
struct Program : Machine {
    Program(const std::string& isa, int num_threads, int cache_format)
        : Machine(choose_kernels(isa), num_threads, enumerator<CacheFormat>(cache_format, 3)) {}

    const Buffer& buffer(int index) const { return buffers[index_below(index, buffers.size(), "buffer")]; }
    int buffer(int index, int width) const {
        require(buffer(index).width == width, "a buffer has another width");
        return index;
    }
    const Weight& weight(int index) const { return weights[index_below(index, weights.size(), "weight")]; }
    // The vector `index` of at least `size` numbers, or none.
    int vector(int index, int size) const {
        if (index == kNone) return index;
        const std::vector<float>& found = vectors[index_below(index, vectors.size(), "vector")];
        require(found.size() >= std::size_t(size), "a vector is too short");
        return index;
    }
    InputNorm norm(const Norm& n, int width) const { return {vector(std::get<0>(n), width), std::get<1>(n)}; }
    Linear::Output output(const Output& o, int in_width) const {
        const auto& [index, bias, out] = o;
        const Weight& w = weight(index);
        require(w.k == in_width, "a weight reads another width");
        return {index, vector(bias, w.rows), buffer(out, w.rows)};
    }
    Epilogue epilogue(float factor, const std::vector<int>& residuals, int width) const {
        for (const int residual : residuals) buffer(residual, width);
        return {factor, residuals};
    }
    HeadStep head_step(const Head& h, int dim) const {
        const auto& [number, operand, rotated, a, b] = h;
        const auto kind = enumerator<HeadStep::Kind>(number, 4);
        if (kind == HeadStep::Norm) require(operand != kNone && vector(operand, dim) >= 0, "a norm has no weights");
        if (kind == HeadStep::RopeHalves || kind == HeadStep::RopeInterleaved)
            require(rotated <= dim && rotated % 2 == 0 && buffer(operand, rotated) >= 0, "rotations are too wide");
        return {kind, operand, rotated, a, b};
    }
    std::vector<HeadStep> head_steps(const std::vector<Head>& steps, int dim) const {
        std::vector<HeadStep> out;
        for (const Head& step : steps) out.push_back(head_step(step, dim));
        return out;
    }
    static Experts::Matrix expert_matrix(const Part& part, const Bytes& data, std::size_t stride) {
        const auto& [number, rows, k, offset, bias] = part;
        const Format format = checked_format(number);
        const auto inside = [=](std::size_t begin, std::size_t size) {
            return begin % sizeof(float) == 0 && begin <= stride && size <= stride - begin;
        };
        require(offset % kLine == 0 && inside(offset, checked_bytes(format, rows, k)), "a part is not in its record");
        if (bias.is_none()) return {{format, rows, k, data.data() + offset}, nullptr};
        const auto at = nb::cast<std::size_t>(bias);
        require(inside(at, std::size_t(rows) * sizeof(float)), "a bias is not in its record");
        return {{format, rows, k, data.data() + offset}, (const float*)(data.data() + at)};
    }
    Experts::Matrix expert_matrix(const Named& named) const {
        const auto [index, bias] = named;
        const Weight& w = weight(index);
        return {w, vector(bias, w.rows) == kNone ? nullptr : vectors[bias].data()};
    }
    static Experts::Expert expert(const Experts::Matrix& gate, const Experts::Matrix& up, const Experts::Matrix& down,
                                  Glu glu, int in, int out) {
        const int dim = gate.weight.rows;
        require(gate.weight.k == in && up.weight.k == in && up.weight.rows == dim && down.weight.k == dim &&
                    down.weight.rows == out,
                "an expert's weights do not fit each other");
        return {gate, up, down, glu};
    }

    // A matrix, or `heads` matrices of `rows` / `heads` rows each.
    int add_weight(int format, int rows, int k, Bytes data, int heads) {
        const Format f = checked_format(format);
        require(heads > 0 && rows % heads == 0, "heads do not divide a weight's rows");
        require(data.size() == checked_bytes(f, rows / heads, k) * heads, "packed weight has the wrong size");
        weights.push_back({f, rows, k, data.data()});
        held.push_back(data);
        return int(weights.size()) - 1;
    }
    int add_vector(Floats data) {
        std::vector<float> v(std::size_t(num_panels(int(data.size()))) * kPanelRows);
        if (data.size()) std::memcpy(v.data(), data.data(), data.size() * sizeof(float));
        vectors.push_back(std::move(v));
        return int(vectors.size()) - 1;
    }
    int add_buffer(int width, bool wanted) {
        require(width > 0 && width <= kMaxDim, "a buffer has an impossible width");
        return Machine::add_buffer(width, wanted ? Rows::Wanted : Rows::Tokens);
    }
    template <class Op, class... Args>
    void add(Args&&... args) {
        operations.push_back(std::make_unique<Op>(std::forward<Args>(args)...));
    }
    void embed(int table, int out) {
        num_tokens = weight(table).rows;
        add<Embed>(table, buffer(out, weight(table).k));
    }
    void select(int in, int out) { add<Select>(in, buffer(out, buffer(in).width)); }
    void rope_table(int inv_freq, float factor, int out) {
        require(inv_freq != kNone, "a rotary table has no frequencies");
        add<RopeTable>(vector(inv_freq, buffer(out).width / 2), factor, out);
    }
    void linear(int in, const Norm& norm, const std::vector<Output>& outputs, float factor,
                const std::vector<int>& residuals) {
        const int width = buffer(in).width;
        require(!outputs.empty(), "a linear has no weights");
        std::vector<Linear::Output> list;
        for (const Output& o : outputs) list.push_back(output(o, width));
        add<Linear>(in, this->norm(norm, width), list, epilogue(factor, residuals, weights[list[0].weight].rows));
    }
    void glu(int in, const Norm& norm, const Output& gate, const Output& up, int kind, float limit) {
        const int width = buffer(in).width;
        add<GluLinear>(in, this->norm(norm, width), output(gate, width), output(up, width),
                       Glu{activation(kind), limit});
    }
    void row_operation(int number, int in, int other, float value, int out) {
        const auto kind = enumerator<RowOperation::Kind>(number, 6);
        const int width = buffer(in).width;
        if (kind == RowOperation::Norm) require(other != kNone && vector(other, width) >= 0, "a norm has no weights");
        if (kind == RowOperation::Gate) buffer(other, 1);
        if (kind == RowOperation::Add) buffer(other, width);
        add<RowOperation>(kind, in, other, value, buffer(out, width));
    }
    void attention(int q, int k, int v, int out, int num_heads, int num_kv_heads, int key_dim, int value_dim,
                   float scale, float softcap, int window, int chunk, int sinks, const std::vector<Head>& q_steps,
                   const std::vector<Head>& k_steps) {
        require(key_dim > 0 && value_dim > 0 && key_dim <= kMaxHeadDim && value_dim <= kMaxHeadDim,
                "heads are too wide");
        require(num_kv_heads > 0 && num_heads > 0 && num_heads % num_kv_heads == 0, "heads do not divide");
        require(window >= 0 && chunk >= 0, "a window is negative");
        auto op = std::make_unique<Attention>();
        op->q = buffer(q, num_heads * key_dim), op->k = buffer(k, num_kv_heads * key_dim);
        op->v = buffer(v, num_kv_heads * value_dim), op->out = buffer(out, num_heads * value_dim);
        op->num_heads = num_heads, op->num_kv_heads = num_kv_heads, op->key_dim = key_dim, op->value_dim = value_dim;
        op->scale = scale, op->softcap = softcap, op->window = window, op->chunk = chunk;
        op->sinks = vector(sinks, num_heads);
        op->q_steps = head_steps(q_steps, key_dim), op->k_steps = head_steps(k_steps, key_dim);
        op->layer = cache.add_layer(num_kv_heads, key_dim, value_dim);
        operations.push_back(std::move(op));
    }
    void latent_attention(int q, int kv, int out, const Norm& norm, int k_b, int v_b, int num_heads, int nope_dim,
                          int rope_dim, int value_dim, int rank, float scale, const Head& rope) {
        require(nope_dim > 0 && rope_dim > 0 && value_dim > 0 && rank > 0 && num_heads > 0 &&
                    nope_dim + rope_dim <= kMaxHeadDim && rank + rope_dim <= kMaxHeadDim && value_dim <= kMaxHeadDim,
                "heads are too wide");
        const auto fits = [&](const Weight& w, int dim) { return w.rows == num_heads * dim && w.k == rank; };
        require(fits(weight(k_b), nope_dim) && fits(weight(v_b), value_dim), "weights of latents do not fit");
        require(std::get<0>(norm) != kNone, "a norm has no weights");
        auto op = std::make_unique<LatentAttention>();
        op->q = buffer(q, num_heads * (nope_dim + rope_dim)), op->kv = buffer(kv, rank + rope_dim);
        op->out = buffer(out, num_heads * value_dim), op->norm = this->norm(norm, rank), op->k_b = k_b, op->v_b = v_b;
        op->num_heads = num_heads, op->nope_dim = nope_dim, op->rope_dim = rope_dim, op->value_dim = value_dim;
        op->rank = rank, op->scale = scale, op->rope = head_step(rope, rope_dim);
        op->layer = cache.add_layer(1, 0, rank + rope_dim);
        operations.push_back(std::move(op));
    }
    void short_conv(int in, int out, int taps, int bias, int kernel) {
        const int dim = buffer(out).width;
        require(kernel > 1 && kernel <= 16, "a convolution has an impossible kernel");
        require(taps != kNone && vector(taps, kernel * dim) >= 0, "a convolution has no taps");
        add<ShortConv>(buffer(in, 3 * dim), out, taps, vector(bias, dim), kernel,
                       states.add_layer((kernel - 1) * dim, dim));
    }
    // Returns the buffer of the routes: [chosen: k | weights: k] of each token.
    int experts(int in, const Norm& norm, int logits, const Router& router, int out, Bytes data, std::size_t stride,
                const Part& gate, const Part& up, const Part& down, int kind, float limit,
                const std::optional<Shared>& shared, int share, float factor, const std::vector<int>& residuals) {
        const int in_width = buffer(in).width, out_width = buffer(out).width;
        require(stride % kLine == 0 && stride <= data.size() / router.num_experts,
                "packed experts have the wrong size");
        vector(router.choice_bias, router.num_experts), vector(router.expert_scale, router.num_experts);
        auto op = std::make_unique<Experts>();
        op->in = in, op->logits = buffer(logits, router.num_experts), op->out = out;
        op->norm = this->norm(norm, in_width), op->router = router;
        const auto in_record = [&](const Part& part) { return expert_matrix(part, data, stride); };
        op->first =
            expert(in_record(gate), in_record(up), in_record(down), {activation(kind), limit}, in_width, out_width);
        op->stride = stride;
        if (shared) {
            const auto& [shared_gate, shared_up, shared_down, shared_kind, shared_limit] = *shared;
            op->shared = expert(expert_matrix(shared_gate), expert_matrix(shared_up), expert_matrix(shared_down),
                                {activation(shared_kind), shared_limit}, in_width, out_width);
        }
        op->shared_gate = share == kNone ? share : buffer(share, 1);
        op->epilogue = epilogue(factor, residuals, out_width);
        op->routes = add_buffer(2 * router.num_chosen, false);
        hidden_width = std::max(hidden_width, op->hidden_width());
        widest = std::max(widest, op->first.gate.weight.k);
        held.push_back(data);
        const int routes = op->routes;
        operations.push_back(std::move(op));
        return routes;
    }
    void allocate(int rows, int num_pages, int num_slots, int num_sequences) {
        require(rows > 0 && rows <= kMaxDim && num_pages > 0, "a program needs memory for rows and pages");
        require(num_sequences >= 0 && num_slots >= num_sequences, "a program has fewer slots than sequences");
        Machine::allocate(rows, num_pages, num_slots, num_sequences);
    }

    using CachedPages = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>>;
    // The cache's memory itself: [num_pages, page_bytes].
    CachedPages pages() {
        return {cache.pages(), {std::size_t(cache.num_pages()), cache.page_bytes()}, nb::find(this)};
    }
    // The memory of per-sequence states: [num_slots, slot_bytes].
    CachedPages slots() {
        return {states.slots(), {std::size_t(states.num_slots()), states.slot_bytes()}, nb::find(this)};
    }
    using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
    static Matrix matrix(const Buffer& from, std::size_t rows) {
        const std::size_t width = from.width;
        float* data = new float[rows * width];
        for (std::size_t r = 0; r < rows; r++) std::memcpy(data + r * width, from.row(int(r)), width * sizeof(float));
        nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        return {data, {rows, width}, owner};
    }
    Matrix read(int index) {
        const Buffer& from = buffer(index);
        return matrix(from, std::size_t(step.num_rows(from.rows)));
    }

    // The rows of a step and the pages that they need, each checked: what the engine says is not trusted here.
    Step plan(const Ints& tokens, const Ints& lengths, const Ints& starts, const Pages& pages, const Ints& wanted,
              const Ints& prompts) const {
        const std::size_t count = lengths.size(), rows = tokens.size();
        require(starts.size() == count && prompts.size() == count && pages.shape(0) == count,
                "a step's arrays differ in length");
        require(rows <= std::size_t(max_rows) && wanted.size() <= std::size_t(max_rows), "a step has too many rows");
        Step next;
        next.tokens = view(tokens), next.wanted = view(wanted);
        for (const int token : next.tokens) index_below(token, num_tokens, "token");
        for (const int row : next.wanted) index_below(row, rows, "row");
        std::size_t row = 0;
        for (std::size_t s = 0; s < count; s++) {
            const int length = lengths.data()[s], start = starts.data()[s];
            require(length >= 0 && start >= 0 && std::size_t(length) <= rows - row, "a step's rows do not add up");
            const std::int64_t needed = (std::int64_t(start) + length + kPageTokens - 1) / kPageTokens;
            require(needed <= std::int64_t(pages.shape(1)), "a sequence has too few pages");
            const std::int32_t* own = pages.data() + s * pages.shape(1);
            for (std::int64_t p = 0; p < needed; p++) index_below(own[p], cache.num_pages(), "page");
            next.sequences.push_back({.row = int(row),
                                      .length = length,
                                      .start = start,
                                      .prompt = prompts.data()[s],
                                      .pages = own,
                                      .saves = {}});
            for (int i = 0; i < length; i++) {
                next.positions.push_back(start + i);
                next.sequence_of.push_back(int(s));
            }
            row += length;
        }
        require(row == rows, "a step's rows do not add up");
        return next;
    }
    // What the step does to states: slot, begin and end of each sequence, and copies: sequence, position and slot.
    void plan_states(Step& next, const Pages& moves, const Pages& saves) const {
        const std::size_t count = next.sequences.size();
        require(moves.shape(0) == count && moves.shape(1) == 3 && saves.shape(1) == 3, "a step says nothing of states");
        for (std::size_t s = 0; s < count; s++) {
            Sequence& sequence = next.sequences[s];
            const std::int32_t* move = moves.data() + 3 * s;
            sequence.slot = index_below(move[0], states.num_sequences(), "slot");
            sequence.state_begin = move[1], sequence.state_end = move[2];
            const auto drafts_fit = [](int count) { return count >= 0 && count <= kMaxDraft; };
            require(sequence.state_begin >= 0 && drafts_fit(sequence.start - sequence.state_begin) &&
                        sequence.state_end >= sequence.start && drafts_fit(sequence.end() - sequence.state_end),
                    "a state does not move on");
        }
        for (std::size_t i = 0; i < saves.shape(0); i++) {
            const std::int32_t* save = saves.data() + 3 * i;
            Sequence& sequence = next.sequences[index_below(save[0], count, "sequence")];
            require(save[1] > sequence.state_begin && save[1] <= sequence.state_end, "a state does not pass there");
            require(save[2] >= states.num_sequences(), "a state is copied over another");
            sequence.saves.push_back({save[1], index_below(save[2], states.num_slots(), "slot")});
        }
    }
    // Runs operations `begin` to `end`; returns what they leave in the buffer `result`: [wanted, width].
    Matrix take_step(Ints tokens, Ints lengths, Ints starts, Pages pages, Ints wanted, Ints prompts, int begin, int end,
                     int result, bool traced, std::optional<Pages> moves, std::optional<Pages> saves) {
        index_below(end, operations.size() + 1, "operation"), index_below(begin, end + 1ull, "operation");
        const Buffer& to = buffer(result);
        Step next = plan(tokens, lengths, starts, pages, wanted, prompts);
        if (states.slot_bytes()) {
            require(moves && saves, "a step says nothing of states");
            plan_states(next, *moves, *saves);
        }
        {
            nb::gil_scoped_release released;
            run(std::move(next), begin, end, traced);
        }
        return matrix(to, wanted.size());
    }

    int num_tokens = 0;  // that the embedding has rows for
    std::vector<Bytes> held;
};

Router checked_router(int num_experts, int num_chosen, bool sigmoid, bool renormalise, float scale, int choice_bias,
                      int expert_scale, int num_groups, int kept_groups, int group_choice, bool weighs_input) {
    const auto choice = enumerator<GroupChoice>(group_choice, 3);
    require(num_experts > 0 && num_experts <= kMaxExperts, "too many experts");
    require(num_groups > 0 && num_experts % num_groups == 0, "groups do not divide the experts");
    const int size = num_experts / num_groups;
    require(num_chosen > 0 && kept_groups > 0 && kept_groups <= num_groups, "no expert is chosen");
    if (choice == GroupChoice::Each)
        require(num_chosen % num_groups == 0 && num_chosen <= num_experts, "groups do not divide the chosen");
    else
        require(num_chosen <= kept_groups * size, "more experts are chosen than are there");
    return {num_experts,  num_chosen, sigmoid,     renormalise, scale,       choice_bias,
            expert_scale, num_groups, kept_groups, choice,      weighs_input};
}

}  // namespace

void bind_program(nb::module_& m) {
    nb::class_<Router>(m, "Router")
        .def(
            "__init__",
            [](Router* self, int num_experts, int num_chosen, bool sigmoid, bool renormalise, float scale,
               int choice_bias, int expert_scale, int num_groups, int kept_groups, int group_choice,
               bool weighs_input) {
                new (self) Router(checked_router(num_experts, num_chosen, sigmoid, renormalise, scale, choice_bias,
                                                 expert_scale, num_groups, kept_groups, group_choice, weighs_input));
            },
            nb::kw_only(), "num_experts"_a, "num_chosen"_a, "sigmoid"_a, "renormalise"_a, "scale"_a, "choice_bias"_a,
            "expert_scale"_a, "num_groups"_a, "kept_groups"_a, "group_choice"_a, "weighs_input"_a);
    nb::class_<Program>(m, "Program")
        .def(nb::init<const std::string&, int, int>(), "isa"_a, "num_threads"_a,
             "cache_format"_a = int(CacheFormat::F16))
        .def_prop_ro("isa", [](const Program& p) { return p.kernels.name; })
        .def_prop_ro("num_threads", [](const Program& p) { return p.team.size(); })
        .def_rw("early_care", &Program::early_care)
        .def_rw("late_care", &Program::late_care)
        .def_prop_ro("barriers", [](const Program& p) { return p.team.barriers(); })
        .def_prop_ro("page_bytes", [](const Program& p) { return p.cache.page_bytes(); })
        .def_prop_ro("pages", &Program::pages)
        .def("weight", &Program::add_weight, "format"_a, "rows"_a, "k"_a, "packed"_a, "heads"_a = 1)
        .def("vector", &Program::add_vector, "values"_a)
        .def("buffer", &Program::add_buffer, "width"_a, "wanted"_a)
        .def("embed", &Program::embed, "table"_a, "out"_a)
        .def("select", &Program::select, "x"_a, "out"_a)
        .def("rope_table", &Program::rope_table, "inv_freq"_a, "factor"_a, "out"_a)
        .def("linear", &Program::linear, "x"_a, "norm"_a, "outputs"_a, "factor"_a, "residuals"_a)
        .def("glu", &Program::glu, "x"_a, "norm"_a, "gate"_a, "up"_a, "activation"_a, "limit"_a)
        .def("row_operation", &Program::row_operation, "kind"_a, "x"_a, "other"_a, "value"_a, "out"_a)
        .def("experts", &Program::experts, nb::kw_only(), "x"_a, "norm"_a, "logits"_a, "router"_a, "out"_a, "packed"_a,
             "stride"_a, "gate"_a, "up"_a, "down"_a, "activation"_a, "limit"_a, "shared"_a.none(), "shared_gate"_a,
             "factor"_a, "residuals"_a)
        .def("attention", &Program::attention, nb::kw_only(), "q"_a, "k"_a, "v"_a, "out"_a, "num_heads"_a,
             "num_kv_heads"_a, "key_dim"_a, "value_dim"_a, "scale"_a, "softcap"_a, "window"_a, "chunk"_a, "sinks"_a,
             "q_steps"_a, "k_steps"_a)
        .def_prop_ro("slot_bytes", [](const Program& p) { return p.states.slot_bytes(); })
        .def_prop_ro("states", &Program::slots)
        .def("short_conv", &Program::short_conv, nb::kw_only(), "x"_a, "out"_a, "taps"_a, "bias"_a, "kernel"_a)
        .def("latent_attention", &Program::latent_attention, nb::kw_only(), "q"_a, "kv"_a, "out"_a, "norm"_a, "k_b"_a,
             "v_b"_a, "num_heads"_a, "nope_dim"_a, "rope_dim"_a, "value_dim"_a, "rank"_a, "scale"_a, "rope"_a)
        .def_prop_ro("num_operations", [](const Program& program) { return program.operations.size(); })
        .def("read", &Program::read, "buffer"_a)
        .def("allocate", &Program::allocate, "max_rows"_a, "num_pages"_a, "num_slots"_a = 0, "num_sequences"_a = 0)
        .def("step", &Program::take_step, "tokens"_a, "lengths"_a, "starts"_a, "pages"_a, "wanted"_a, "prompts"_a,
             "begin"_a, "end"_a, "result"_a, "traced"_a = false, "moves"_a = nb::none(), "saves"_a = nb::none())
        .def_ro("seconds", &Program::seconds);
}

}  // namespace freedive
