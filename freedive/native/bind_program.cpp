// Python bindings of Program. They only convert types; the program checks its arguments (record_program.cpp,
// plan_step.cpp).
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "bind.h"
#include "cpu.h"
#include "operations.h"

namespace freedive {
namespace {

using IntRows = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using IntMatrix = nb::ndarray<nb::numpy, std::int32_t, nb::ndim<2>>;
using MappedBytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>>;

// Small structs are tuples in Python, with the fields in order.
using Output = std::tuple<int, int, int>;
using Norm = std::tuple<int, float>;
using Head = std::tuple<HeadStep::Kind, int, int, float, float>;
using Part = std::tuple<Format, int, int, std::size_t, std::optional<std::size_t>>;
using Stored = std::tuple<std::uint64_t, std::vector<std::tuple<std::size_t, std::size_t>>, std::vector<std::uint64_t>>;
using Traffic = std::tuple<std::int64_t, std::int64_t, std::int64_t, double>;
using Named = std::tuple<int, int>;
using Shared = std::tuple<Named, Named, Named, Activation, float>;

template <class Struct, class... Fields>
Struct make(const std::tuple<Fields...>& fields) {
    return std::apply([](const Fields&... field) { return Struct{field...}; }, fields);
}
template <class Struct, class Tuple>
std::vector<Struct> make_all(const std::vector<Tuple>& tuples) {
    std::vector<Struct> all;
    for (const Tuple& each : tuples) all.push_back(make<Struct>(each));
    return all;
}
std::optional<Experts::SharedWeights> shared_weights(const std::optional<Shared>& shared) {
    if (!shared) return std::nullopt;
    const auto& [gate, up, down, activation, limit] = *shared;
    return Experts::SharedWeights{
        make<Experts::Named>(gate), make<Experts::Named>(up), make<Experts::Named>(down), {activation, limit}};
}

IntTable table(const IntRows& rows) { return {rows.data(), rows.shape(0), rows.shape(1)}; }
std::optional<IntTable> table(const std::optional<IntRows>& rows) {
    return rows ? std::optional(table(*rows)) : std::nullopt;
}

// Copies `rows` rows of `width` elements to a new array. Rows in memory are `stride` elements apart.
template <class Number>
nb::ndarray<nb::numpy, Number, nb::ndim<2>> copied(const Number* from, std::size_t rows, std::size_t width,
                                                   std::size_t stride) {
    Number* data = new Number[rows * width];
    for (std::size_t r = 0; r < rows; r++) std::memcpy(data + r * width, from + r * stride, width * sizeof(Number));
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<Number*>(p); });
    return {data, {rows, width}, owner};
}
Matrix copied(const Buffer& buffer, std::size_t rows) {
    return copied<float>(buffer.row(0), rows, buffer.width, buffer.stride);
}

Matrix take_step(Program& program, Ints tokens, Ints lengths, Ints starts, IntRows pages, Ints wanted, Ints prompts,
                 int begin, int end, int result, bool traced, std::optional<IntRows> moves,
                 std::optional<IntRows> saves) {
    const Buffer& to = program.buffer(result);
    Step next = program.plan({.tokens = view(tokens),
                              .lengths = view(lengths),
                              .starts = view(starts),
                              .pages = table(pages),
                              .wanted = view(wanted),
                              .prompts = view(prompts),
                              .moves = table(moves),
                              .saves = table(saves)});
    {
        nb::gil_scoped_release released;
        program.run(std::move(next), begin, end, traced);
    }
    return copied(to, wanted.size());
}

int add_experts(Program& program, int in, Norm norm, int logits, const Router& router, int out, Bytes packed, int count,
                std::size_t stride, const std::optional<Stored>& stored, Part gate, Part up, Part down,
                Activation activation, float limit, const std::optional<Shared>& shared, int shared_gate, float factor,
                std::vector<int> residuals) {
    auto op = std::make_unique<Experts>();
    op->in = in, op->logits = logits, op->out = out, op->norm = make<InputNorm>(norm), op->router = router;
    op->records = {{count, stride, view(packed)},
                   make<Experts::Part>(gate),
                   make<Experts::Part>(up),
                   make<Experts::Part>(down),
                   {activation, limit}};
    if (stored) {
        const auto& [offset, parts, checksums] = *stored;
        op->records.layer.offset = offset;
        op->records.layer.parts = make_all<Extent>(parts);
        op->records.layer.checksums = checksums;
    }
    op->shared_weights = shared_weights(shared), op->shared_gate = shared_gate;
    op->epilogue = {factor, std::move(residuals)};
    return program.add(std::move(op)).routes;
}

int add_attention(Program& program, int q, int k, int v, int out, int source, int num_heads, int num_kv_heads,
                  int key_dim, int value_dim, float scale, float softcap, int window, int chunk, int sinks,
                  const std::vector<Head>& q_steps, const std::vector<Head>& k_steps,
                  const std::vector<Head>& v_steps) {
    auto op = std::make_unique<Attention>();
    op->q = q, op->k = k, op->v = v, op->out = out, op->source = source;
    op->num_heads = num_heads, op->num_kv_heads = num_kv_heads, op->key_dim = key_dim, op->value_dim = value_dim;
    op->scale = scale, op->softcap = softcap, op->window = window, op->chunk = chunk, op->sinks = sinks;
    op->q_steps = make_all<HeadStep>(q_steps), op->k_steps = make_all<HeadStep>(k_steps);
    op->v_steps = make_all<HeadStep>(v_steps);
    return program.add(std::move(op)).layer;
}

void add_latent_attention(Program& program, int q, int kv, int out, Norm norm, int k_b, int v_b, int num_heads,
                          int nope_dim, int rope_dim, int value_dim, int rank, float scale, Head rope) {
    auto op = std::make_unique<LatentAttention>();
    op->q = q, op->kv = kv, op->out = out, op->norm = make<InputNorm>(norm), op->k_b = k_b, op->v_b = v_b;
    op->num_heads = num_heads, op->nope_dim = nope_dim, op->rope_dim = rope_dim, op->value_dim = value_dim;
    op->rank = rank, op->scale = scale, op->rope = make<HeadStep>(rope);
    program.add(std::move(op));
}

void add_delta_rule(Program& program, int q, int k, int v, int beta, int decay, int out, int num_key_heads,
                    int num_value_heads, int key_dim, int value_dim, bool by_channel, bool tiled, int rate, int bias,
                    float decay_bound) {
    auto op = std::make_unique<DeltaRule>();
    op->q = q, op->k = k, op->v = v, op->beta = beta, op->decay = decay, op->out = out;
    op->num_key_heads = num_key_heads, op->num_value_heads = num_value_heads;
    op->key_dim = key_dim, op->value_dim = value_dim, op->by_channel = by_channel, op->tiled = tiled;
    op->rate = rate, op->bias = bias, op->decay_bound = decay_bound;
    program.add(std::move(op));
}

void bind_enums(nb::module_& m) {
    nb::enum_<Activation>(m, "Activation")
        .value("silu", Activation::Silu)
        .value("gelu_tanh", Activation::GeluTanh)
        .value("swiglu_oai", Activation::SwigluOai)
        .value("clamped_silu", Activation::ClampedSilu)
        .value("sigmoid", Activation::Sigmoid);
    nb::enum_<GroupChoice>(m, "GroupChoice")
        .value("max", GroupChoice::Best)
        .value("top2", GroupChoice::BestTwo)
        .value("each", GroupChoice::Each);
    nb::enum_<RouterScore>(m, "RouterScore")
        .value("softmax", RouterScore::Softmax)
        .value("sigmoid", RouterScore::Sigmoid);
    nb::enum_<CacheFormat>(m, "CacheFormat")
        .value("f32", CacheFormat::F32)
        .value("f16", CacheFormat::F16)
        .value("int8", CacheFormat::Int8);
    nb::enum_<RowOperation::Kind>(m, "RowKind")
        .value("SCALE", RowOperation::Scale)
        .value("SOFTCAP", RowOperation::Softcap)
        .value("CLIP", RowOperation::Clip)
        .value("SIGMOID_GATE", RowOperation::SigmoidGate)
        .value("SOFTPLUS_GATE", RowOperation::SoftplusGate)
        .value("SCALE_BY_POSITION", RowOperation::ScaleByPosition)
        .value("ADD", RowOperation::Add);
    nb::enum_<HeadStep::Kind>(m, "HeadStepKind")
        .value("NORM", HeadStep::Norm)
        .value("ROPE_HALVES", HeadStep::RopeHalves)
        .value("ROPE_INTERLEAVED", HeadStep::RopeInterleaved)
        .value("SCALE_BY_POSITION", HeadStep::ScaleByPosition);
}

void bind_router(nb::module_& m) {
    nb::class_<Router>(m, "Router")
        .def(
            "__init__",
            [](Router* self, int num_experts, int num_chosen, RouterScore score, bool renormalise, float scale,
               int choice_bias, int expert_scale, int num_groups, int kept_groups, GroupChoice group_choice,
               bool weighs_input) {
                new (self) Router(checked({num_experts, num_chosen, score, renormalise, scale, choice_bias,
                                           expert_scale, num_groups, kept_groups, group_choice, weighs_input}));
            },
            nb::kw_only(), "num_experts"_a, "num_chosen"_a, "score"_a, "renormalise"_a, "scale"_a, "choice_bias"_a,
            "expert_scale"_a, "num_groups"_a, "kept_groups"_a, "group_choice"_a, "weighs_input"_a);
}

using ProgramClass = nb::class_<Program>;

// Weights are not copied. The program keeps their arrays alive, so the arrays must not be converted (noconvert).
void bind_recording(ProgramClass& program) {
    program
        .def(
            "weight",
            [](Program& p, Format format, int rows, int k, Bytes packed, int heads) {
                return p.add_weight(format, rows, k, view(packed), heads);
            },
            "format"_a, "rows"_a, "k"_a, "packed"_a.noconvert(), "heads"_a = 1, nb::keep_alive<1, 5>())
        .def(
            "vector", [](Program& p, Floats values) { return p.add_vector(view(values)); }, "values"_a)
        .def(
            "buffer",
            [](Program& p, int width, bool wanted) {
                return p.add_buffer(width, wanted ? Rows::Wanted : Rows::Tokens);
            },
            "width"_a, "wanted"_a)
        .def("embed", &Program::emplace<Embed, int, int>, "table"_a, "out"_a)
        .def("select", &Program::emplace<Select, int, int>, "x"_a, "out"_a)
        .def("rope_table", &Program::emplace<RopeTable, int, float, int>, "inv_freq"_a, "factor"_a, "out"_a)
        .def(
            "linear",
            [](Program& p, int in, Norm norm, const std::vector<Output>& outputs, float factor,
               std::vector<int> residuals) {
                p.emplace<Linear>(in, make<InputNorm>(norm), make_all<Linear::Output>(outputs),
                                  Epilogue{factor, std::move(residuals)});
            },
            "x"_a, "norm"_a, "outputs"_a, "factor"_a, "residuals"_a)
        .def(
            "glu",
            [](Program& p, int in, Norm norm, Output gate, Output up, Activation activation, float limit) {
                p.emplace<GluLinear>(in, make<InputNorm>(norm), make<Linear::Output>(gate), make<Linear::Output>(up),
                                     Glu{activation, limit});
            },
            "x"_a, "norm"_a, "gate"_a, "up"_a, "activation"_a, "limit"_a)
        .def("row_operation", &Program::emplace<RowOperation, RowOperation::Kind, int, int, float, int>, "kind"_a,
             "x"_a, "other"_a, "value"_a, "out"_a)
        .def(
            "row_norm",
            [](Program& p, int in, int out, Norm norm, int part, float factor, std::vector<int> residuals,
               float after) {
                p.emplace<RowNorm>(in, out, make<InputNorm>(norm), part, Epilogue{factor, std::move(residuals)}, after);
            },
            nb::kw_only(), "x"_a, "out"_a, "norm"_a, "part"_a, "factor"_a = 1.0f, "residuals"_a = std::vector<int>(),
            "after"_a = 1.0f)
        .def(
            "row_glu",
            [](Program& p, int gate, int up, int first, int out, Activation activation, float limit) {
                p.emplace<RowGlu>(gate, up, first, out, Glu{activation, limit});
            },
            nb::kw_only(), "gate"_a, "up"_a, "first"_a, "out"_a, "activation"_a, "limit"_a)
        .def("short_conv", &Program::emplace<ShortConv, int, int, int, int, int, bool>, nb::kw_only(), "x"_a, "out"_a,
             "taps"_a, "bias"_a, "kernel"_a, "gated"_a)
        .def("delta_rule", &add_delta_rule, nb::kw_only(), "q"_a, "k"_a, "v"_a, "beta"_a, "decay"_a, "out"_a,
             "num_key_heads"_a, "num_value_heads"_a, "key_dim"_a, "value_dim"_a, "by_channel"_a, "tiled"_a, "rate"_a,
             "bias"_a, "decay_bound"_a)
        .def("gated_norm", &Program::emplace<GatedNorm, int, int, int, int, int, float, Activation>, nb::kw_only(),
             "x"_a, "gate"_a, "out"_a, "weight"_a, "head_dim"_a, "eps"_a, "activation"_a)
        .def("experts", &add_experts, nb::kw_only(), "x"_a, "norm"_a, "logits"_a, "router"_a, "out"_a,
             "packed"_a.noconvert(), "count"_a, "stride"_a, "stored"_a.none(), "gate"_a, "up"_a, "down"_a,
             "activation"_a, "limit"_a, "shared"_a.none(), "shared_gate"_a, "factor"_a, "residuals"_a,
             nb::keep_alive<1, 7>())
        .def("attention", &add_attention, nb::kw_only(), "q"_a, "k"_a, "v"_a, "out"_a, "source"_a, "num_heads"_a,
             "num_kv_heads"_a, "key_dim"_a, "value_dim"_a, "scale"_a, "softcap"_a, "window"_a, "chunk"_a, "sinks"_a,
             "q_steps"_a, "k_steps"_a, "v_steps"_a)
        .def("latent_attention", &add_latent_attention, nb::kw_only(), "q"_a, "kv"_a, "out"_a, "norm"_a, "k_b"_a,
             "v_b"_a, "num_heads"_a, "nope_dim"_a, "rope_dim"_a, "value_dim"_a, "rank"_a, "scale"_a, "rope"_a)
        .def("allocate", &Program::allocate, "max_rows"_a, "num_pages"_a, "num_slots"_a = 0, "num_sequences"_a = 0)
        .def_prop_ro("num_operations", [](const Program& p) { return p.operations.size(); });
}

// The experts of one row of the last step in all layers, [layers, num_chosen]; -1 where a layer chooses fewer.
IntMatrix chosen_experts(const Program& program, int row) {
    index_below(row, program.step.num_rows(Rows::Tokens), "row");
    std::size_t width = 0;
    for (const Routes& routes : program.routes) width = std::max<std::size_t>(width, routes.num_chosen);
    std::vector<std::int32_t> all(program.routes.size() * width, -1);
    for (std::size_t i = 0; i < program.routes.size(); i++)
        std::copy_n(program.routes[i].experts_of(row), program.routes[i].num_chosen, all.begin() + i * width);
    return copied(all.data(), program.routes.size(), width, width);
}

void bind_steps(ProgramClass& program) {
    program
        .def("step", &take_step, "tokens"_a, "lengths"_a, "starts"_a, "pages"_a, "wanted"_a, "prompts"_a, "begin"_a,
             "end"_a, "result"_a, "traced"_a = false, "moves"_a = nb::none(), "saves"_a = nb::none())
        .def(
            "routes",
            [](const Program& p, int index) {
                const Routes& routes = p.routes_of_step(index);
                const std::size_t rows = p.step.num_rows(Rows::Tokens), width = routes.num_chosen;
                return std::tuple(copied(routes.experts_of(0), rows, width, routes.stride()),
                                  copied(routes.weights_of(0), rows, width, routes.stride()));
            },
            "index"_a)
        .def("chosen_experts", &chosen_experts, "row"_a)
        .def(
            "read",
            [](const Program& p, int index) {
                const Buffer& buffer = p.buffer(index);
                return copied(buffer, p.step.num_rows(buffer.rows));
            },
            "buffer"_a)
        .def_ro("seconds", &Program::seconds);
}

PagedExperts* paged(const Program& program) { return dynamic_cast<PagedExperts*>(program.experts.get()); }

void bind_paging(ProgramClass& program) {
    program
        .def(
            "page_experts",
            [](Program& p, std::string path, std::size_t num_bytes, bool direct, int num_readers, double timeout_s,
               std::vector<std::vector<int>> order) {
                p.page_experts({std::move(path), num_bytes, direct, num_readers, timeout_s, std::move(order)});
            },
            nb::kw_only(), "path"_a, "num_bytes"_a, "direct"_a, "num_readers"_a, "timeout_s"_a,
            "order"_a = std::vector<std::vector<int>>())
        .def_ro("unread_rows", &Program::unread_rows)
        .def_prop_ro("slots_bytes", [](const Program& p) { return paged(p) ? paged(p)->num_bytes() : 0; })
        .def_prop_ro("used_slots_bytes", [](const Program& p) { return paged(p) ? paged(p)->num_used_bytes() : 0; })
        .def_prop_ro(
            "expert_traffic",
            [](const Program& p) {
                std::vector<Traffic> all;
                for (const ExpertTraffic& layer : paged(p) ? paged(p)->traffic() : std::vector<ExpertTraffic>())
                    all.emplace_back(layer.hits, layer.misses, layer.bytes, layer.stalled_s);
                return all;
            })
        .def_prop_ro("missed_experts",
                     [](const Program& p) { return paged(p) ? paged(p)->missed() : std::vector<std::vector<int>>(); });
}

void bind_memory(ProgramClass& program) {
    program.def_prop_ro("page_bytes", [](const Program& p) { return p.cache.page_bytes(); })
        .def_prop_ro("pages",
                     [](Program& p) {
                         const std::size_t count = p.cache.num_pages();
                         return MappedBytes(p.cache.pages(), {count, p.cache.page_bytes()}, nb::find(&p));
                     })
        .def_prop_ro("slot_bytes", [](const Program& p) { return p.states.slot_bytes(); })
        .def_prop_ro("states", [](Program& p) {
            const std::size_t count = p.states.num_slots();
            return MappedBytes(p.states.slots(), {count, p.states.slot_bytes()}, nb::find(&p));
        });
}

}  // namespace

void bind_program(nb::module_& m) {
    nb::exception<UnreadableWeights>(m, "UnreadableWeights", PyExc_RuntimeError);
    m.attr("PAGE_TOKENS") = kPageTokens;
    m.attr("MAX_DRAFT") = kMaxDraft;
    m.attr("MAX_HEAD_DIM") = kMaxHeadDim;
    m.attr("MAX_EXPERTS") = kMaxExperts;
    m.attr("LATE_PROMPT_TOKENS") = kLatePromptTokens;
    bind_enums(m);
    bind_router(m);
    ProgramClass program(m, "Program");
    program
        .def(
            "__init__",
            [](Program* self, const std::string& isa, int num_threads, CacheFormat cache_format) {
                new (self) Program(choose_kernels(isa), num_threads, cache_format);
            },
            "isa"_a, "num_threads"_a, "cache_format"_a = CacheFormat::F16)
        .def_prop_ro("isa", [](const Program& p) { return p.kernels.name; })
        .def_prop_ro("num_threads", [](const Program& p) { return p.team.size(); })
        .def_prop_ro("barriers", [](const Program& p) { return p.team.barriers(); })
        .def_prop_rw(
            "bf16_prompts", &Program::has_bf16_prompts, [](Program& p, bool wanted) { p.bf16_prompts = wanted; },
            "Whether rows of prompts are multiplied in bfloat16; stays false on levels without tiles.")
        .def_rw("early_outlier_threshold", &Program::early_outlier_threshold)
        .def_rw("late_outlier_threshold", &Program::late_outlier_threshold)
        .def_rw("cache_preference", &Program::cache_preference);
    bind_recording(program);
    bind_steps(program);
    bind_memory(program);
    bind_paging(program);
}

}  // namespace freedive
