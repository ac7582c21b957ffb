// Python's view: record a program, give it weights, take steps.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>

#include "bandwidth.h"
#include "cpu.h"
#include "memory.h"
#include "operations.h"
#include "peak.h"
#include "sampling.h"
#include "train/bind.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace freedive {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pages = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = std::tuple<int, int, int>;                         // weight, bias, out
using Norm = std::tuple<int, float>;                              // weights, eps
using Head = std::tuple<int, int, int, float, float>;             // kind, operand, dim, a, b
using Part = std::tuple<int, int, int, std::size_t, nb::object>;  // format, rows, k, offset, offset of the bias or None
using Named = std::tuple<int, int>;                               // weight, bias
using Shared = std::tuple<Named, Named, Named, int, float>;       // gate, up, down, activation, limit

std::span<const std::int32_t> view(const Ints& a) { return {a.data(), a.size()}; }
Linear::Output output(const Output& o) { return {std::get<0>(o), std::get<1>(o), std::get<2>(o)}; }
InputNorm input_norm(const Norm& n) { return {std::get<0>(n), std::get<1>(n)}; }
HeadStep head_step(const Head& h) {
    const auto& [kind, operand, dim, a, b] = h;
    return {HeadStep::Kind(kind), operand, dim, a, b};
}
std::vector<HeadStep> head_steps(const std::vector<Head>& steps) {
    std::vector<HeadStep> out;
    for (const Head& step : steps) out.push_back(head_step(step));
    return out;
}
Experts::Matrix expert_matrix(const Part& part, const std::uint8_t* record) {
    const auto& [format, rows, k, offset, bias] = part;
    return {{Format(format), rows, k, record + offset},
            bias.is_none() ? nullptr : (const float*)(record + nb::cast<std::size_t>(bias))};
}
Experts::Matrix expert_matrix(const Machine& m, const Named& named) {
    const auto [weight, bias] = named;
    return {m.weights[weight], bias == kNone ? nullptr : m.vectors[bias].data()};
}

const Weights& weigh_at_best(const Floats& logits, const Sampling& sampling) {
    static const Kernels& best = choose_kernels("");
    static thread_local Weights weights;  // kept, since fresh memory takes longer than what is computed
    weigh(best, {logits.data(), logits.size()}, sampling, weights);
    return weights;
}

// A machine and the arrays that its weights lie in.
struct Program : Machine {
    Program(const std::string& isa, int num_threads, int cache_format)
        : Machine(choose_kernels(isa), num_threads, CacheFormat(cache_format)) {}

    // A matrix, or `heads` matrices of `rows` / `heads` rows each.
    int weight(int format, int rows, int k, Bytes data, int heads) {
        const Format f = Format(format);
        if (data.size() != panel_bytes(f, k) * num_panels(rows / heads) * heads)
            throw std::invalid_argument("packed weight has the wrong size");
        weights.push_back({f, rows, k, data.data()});
        held.push_back(data);
        return int(weights.size()) - 1;
    }
    int vector(Floats data) {
        std::vector<float> v(std::size_t(num_panels(int(data.size()))) * kPanelRows);
        std::memcpy(v.data(), data.data(), data.size() * sizeof(float));
        vectors.push_back(std::move(v));
        return int(vectors.size()) - 1;
    }
    template <class Op, class... Args>
    void add(Args&&... args) {
        operations.push_back(std::make_unique<Op>(std::forward<Args>(args)...));
    }
    void attention(int q, int k, int v, int out, int num_heads, int num_kv_heads, int key_dim, int value_dim,
                   float scale, float softcap, int window, int chunk, int sinks, const std::vector<Head>& q_steps,
                   const std::vector<Head>& k_steps) {
        if (key_dim > kMaxHeadDim || value_dim > kMaxHeadDim) throw std::invalid_argument("heads are too wide");
        auto op = std::make_unique<Attention>();
        op->q = q, op->k = k, op->v = v, op->out = out;
        op->num_heads = num_heads, op->num_kv_heads = num_kv_heads, op->key_dim = key_dim, op->value_dim = value_dim;
        op->scale = scale, op->softcap = softcap, op->window = window, op->chunk = chunk, op->sinks = sinks;
        op->q_steps = head_steps(q_steps), op->k_steps = head_steps(k_steps);
        op->layer = cache.add_layer(num_kv_heads, key_dim, value_dim);
        operations.push_back(std::move(op));
    }
    void latent_attention(int q, int kv, int out, const Norm& norm, int k_b, int v_b, int num_heads, int nope_dim,
                          int rope_dim, int value_dim, int rank, float scale, const Head& rope) {
        if (nope_dim + rope_dim > kMaxHeadDim || rank + rope_dim > kMaxHeadDim || value_dim > kMaxHeadDim)
            throw std::invalid_argument("heads are too wide");
        auto op = std::make_unique<LatentAttention>();
        op->q = q, op->kv = kv, op->out = out, op->norm = input_norm(norm), op->k_b = k_b, op->v_b = v_b;
        op->num_heads = num_heads, op->nope_dim = nope_dim, op->rope_dim = rope_dim, op->value_dim = value_dim;
        op->rank = rank, op->scale = scale, op->rope = head_step(rope);
        op->layer = cache.add_layer(1, 0, rank + rope_dim);
        operations.push_back(std::move(op));
    }
    // Returns the buffer of the routes: [chosen: k | weights: k] of each token.
    int experts(int in, const Norm& norm, int logits, const Router& router, int out, Bytes data, std::size_t stride,
                const Part& gate, const Part& up, const Part& down, int activation, float limit,
                const std::optional<Shared>& shared, int share, float factor, const std::vector<int>& residuals) {
        if (router.num_experts > kMaxExperts) throw std::invalid_argument("too many experts");
        if (data.size() < stride * router.num_experts)
            throw std::invalid_argument("packed experts have the wrong size");
        auto op = std::make_unique<Experts>();
        op->in = in, op->logits = logits, op->out = out, op->norm = input_norm(norm), op->router = router;
        const auto in_record = [&](const Part& part) { return expert_matrix(part, data.data()); };
        op->first = {in_record(gate), in_record(up), in_record(down), {Activation(activation), limit}};
        op->stride = stride;
        if (shared) {
            const auto& [shared_gate, shared_up, shared_down, shared_activation, shared_limit] = *shared;
            const auto named = [&](const Named& n) { return expert_matrix(*this, n); };
            op->shared = Experts::Expert{named(shared_gate),
                                         named(shared_up),
                                         named(shared_down),
                                         {Activation(shared_activation), shared_limit}};
        }
        op->shared_gate = share, op->epilogue = {factor, residuals};
        op->routes = add_buffer(2 * router.num_chosen, Rows::Tokens);
        hidden_width = std::max(hidden_width, op->hidden_width());
        widest = std::max(widest, op->first.gate.weight.k);
        held.push_back(data);
        const int routes = op->routes;
        operations.push_back(std::move(op));
        return routes;
    }
    using CachedPages = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>>;
    // The cache's memory itself: [num_pages, page_bytes].
    CachedPages pages() {
        return {cache.pages(), {std::size_t(cache.num_pages()), cache.page_bytes()}, nb::find(this)};
    }
    using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
    static Matrix matrix(const Buffer& from, std::size_t rows) {
        const std::size_t width = from.width;
        float* data = new float[rows * width];
        for (std::size_t r = 0; r < rows; r++) std::memcpy(data + r * width, from.row(int(r)), width * sizeof(float));
        nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        return {data, {rows, width}, owner};
    }
    Matrix read(int buffer) { return matrix(buffers[buffer], num_rows(buffer)); }
    // Runs operations `begin` to `end`; returns what they leave in the buffer `result`: [wanted, width].
    Matrix take_step(Ints tokens, Ints lengths, Ints starts, Pages pages, Ints wanted, Ints prompts, int begin, int end,
                     int result, bool traced) {
        Step next;
        next.tokens = view(tokens);
        next.wanted = view(wanted);
        int row = 0;
        for (std::size_t s = 0; s < lengths.size(); s++) {
            const int length = lengths.data()[s], start = starts.data()[s];
            next.sequences.push_back({row, length, start, prompts.data()[s], pages.data() + s * pages.shape(1)});
            for (int i = 0; i < length; i++) {
                next.positions.push_back(start + i);
                next.sequence_of.push_back(int(s));
            }
            row += length;
        }
        if (row != int(tokens.size()) || row > max_rows) throw std::invalid_argument("a step's rows do not add up");
        {
            nb::gil_scoped_release released;
            run(std::move(next), begin, end, traced);
        }
        return matrix(buffers[result], wanted.size());
    }
    std::vector<Bytes> held;
};

// One product outside a program, for tests and benchmarks of kernels: x [rows, k] times a packed weight, into
// [panels, rows, 32].
void multiply(const std::string& isa, int format, int out_rows, int k, Bytes data,
              nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> x, MutableFloats out) {
    const Kernels& kernels = choose_kernels(isa);
    const Weight w{Format(format), out_rows, k, data.data()};
    const int rows = int(x.shape(0)), groups = k / kGroup;
    const bool quantised = is_quantised(w.format);
    std::vector<QuantisedGroup> codes(std::size_t(rows) * groups);
    for (int r = 0; quantised && r < rows; r++)
        kernels.quantise(x.data() + std::size_t(r) * k, k, 0, codes.data() + std::size_t(r) * groups);
    std::vector<const void*> row(rows);
    for (int r = 0; r < rows; r++)
        row[r] = quantised ? (const void*)(codes.data() + std::size_t(r) * groups) : x.data() + std::size_t(r) * k;
    for (int p = 0; p < num_panels(out_rows); p++)
        kernels.linear[format](w.panel(p), k, row.data(), rows, out.data() + std::size_t(p) * rows * kPanelRows);
}

}  // namespace

NB_MODULE(_native, m) {
    m.attr("MAX_HEAD_DIM") = kMaxHeadDim;
    m.attr("MAX_EXPERTS") = kMaxExperts;
    m.attr("CAREFUL_TOKENS") = kCarefulTokens;
    m.def("isa_levels", [] {
        std::vector<std::string> names;
        for (const Kernels* level : available_kernels()) names.push_back(level->name);
        return names;
    });
    m.def(
        "packed_bytes", [](int f, int rows, int k) { return panel_bytes(Format(f), k) * num_panels(rows); }, "format"_a,
        "rows"_a, "k"_a);
    m.def(
        "pack",
        [](int f, int rows, int k, Bytes source, MutableBytes out, int num_threads) {
            if (source.size() != source_row_bytes(Format(f), k) * rows ||
                out.size() != panel_bytes(Format(f), k) * num_panels(rows))
                throw std::invalid_argument("pack: sizes do not match the shape");
            nb::gil_scoped_release released;
            std::atomic<int> next = 0;
            std::atomic<bool> finite = true;
            const auto work = [&] {
                for (int p; (p = next++) < num_panels(rows);)
                    if (!pack_panels(Format(f), source.data(), rows, k, p, p + 1, out.data())) finite = false;
            };
            std::vector<std::thread> helpers;
            for (int t = 1; t < num_threads; t++) helpers.emplace_back(work);
            work();
            for (std::thread& t : helpers) t.join();
            return finite.load();
        },
        "format"_a, "rows"_a, "k"_a, "source"_a, "out"_a, "num_threads"_a = 1);
    m.def("unpack_row", [](int f, int rows, int k, Bytes data, int row, MutableFloats out) {
        unpack_row({Format(f), rows, k, data.data()}, row, out.data());
    });
    m.def("keep_freed_memory", keep_freed_memory, "num_bytes"_a);
    m.def(
        "read_bandwidth",
        [](int num_threads, int megabytes) {
            return read_bandwidth(num_threads, megabytes * std::size_t(1 << 20)) / 1e9;
        },
        "num_threads"_a, "megabytes"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("compute_peaks", &compute_peaks, "num_threads"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "kth_largest", [](Floats values, int k) { return kth_largest({values.data(), values.size()}, k); }, "values"_a,
        "k"_a);
    m.def(
        "mask",
        [](Floats logits, Bytes allowed, MutableFloats out) {
            mask({logits.data(), logits.size()}, {allowed.data(), allowed.size()}, out.data());
        },
        "logits"_a, "allowed"_a, "out"_a);
    m.def(
        "weigh",
        [](Floats logits, float temperature, int top_k, float top_p, float min_p, MutableFloats out) {
            const Weights& weights = weigh_at_best(logits, {temperature, top_k, top_p, min_p});
            for (std::size_t i = 0; i < out.size(); i++)
                out.data()[i] = weights.values[i] >= weights.floor ? weights.values[i] : 0;
        },
        "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "out"_a);
    m.def(
        "draw",
        [](Floats logits, float temperature, int top_k, float top_p, float min_p, double random) {
            return draw(weigh_at_best(logits, {temperature, top_k, top_p, min_p}), random);
        },
        "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "random"_a);
    m.def("multiply", &multiply, "isa"_a, "format"_a, "rows"_a, "k"_a, "packed"_a, "x"_a, "out"_a);

    nb::class_<Router>(m, "Router")
        .def(
            "__init__",
            [](Router* self, int num_experts, int num_chosen, bool sigmoid, bool renormalise, float scale,
               int choice_bias, int expert_scale, int num_groups, int kept_groups, int group_choice,
               bool weighs_input) {
                new (self) Router{num_experts, num_chosen,   sigmoid,    renormalise, scale,
                                  choice_bias, expert_scale, num_groups, kept_groups, GroupChoice(group_choice),
                                  weighs_input};
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
        .def("weight", &Program::weight, "format"_a, "rows"_a, "k"_a, "packed"_a, "heads"_a = 1)
        .def("vector", &Program::vector, "values"_a)
        .def(
            "buffer",
            [](Program& p, int width, bool wanted) {
                return p.add_buffer(width, wanted ? Rows::Wanted : Rows::Tokens);
            },
            "width"_a, "wanted"_a)
        .def(
            "embed", [](Program& p, int table, int out) { p.add<Embed>(table, out); }, "table"_a, "out"_a)
        .def(
            "select", [](Program& p, int in, int out) { p.add<Select>(in, out); }, "x"_a, "out"_a)
        .def(
            "rope_table",
            [](Program& p, int inv_freq, float factor, int out) { p.add<RopeTable>(inv_freq, factor, out); },
            "inv_freq"_a, "factor"_a, "out"_a)
        .def(
            "linear",
            [](Program& p, int in, const Norm& norm, const std::vector<Output>& outputs, float factor,
               const std::vector<int>& residuals) {
                std::vector<Linear::Output> list;
                for (const Output& o : outputs) list.push_back(output(o));
                p.add<Linear>(in, input_norm(norm), std::move(list), Epilogue{factor, residuals});
            },
            "x"_a, "norm"_a, "outputs"_a, "factor"_a, "residuals"_a)
        .def(
            "glu",
            [](Program& p, int in, const Norm& norm, const Output& gate, const Output& up, int activation,
               float limit) {
                p.add<GluLinear>(in, input_norm(norm), output(gate), output(up), Glu{Activation(activation), limit});
            },
            "x"_a, "norm"_a, "gate"_a, "up"_a, "activation"_a, "limit"_a)
        .def(
            "row_operation",
            [](Program& p, int kind, int in, int other, float value, int out) {
                p.add<RowOperation>(RowOperation::Kind(kind), in, other, value, out);
            },
            "kind"_a, "x"_a, "other"_a, "value"_a, "out"_a)
        .def("experts", &Program::experts, nb::kw_only(), "x"_a, "norm"_a, "logits"_a, "router"_a, "out"_a, "packed"_a,
             "stride"_a, "gate"_a, "up"_a, "down"_a, "activation"_a, "limit"_a, "shared"_a.none(), "shared_gate"_a,
             "factor"_a, "residuals"_a)
        .def("attention", &Program::attention, nb::kw_only(), "q"_a, "k"_a, "v"_a, "out"_a, "num_heads"_a,
             "num_kv_heads"_a, "key_dim"_a, "value_dim"_a, "scale"_a, "softcap"_a, "window"_a, "chunk"_a, "sinks"_a,
             "q_steps"_a, "k_steps"_a)
        .def("latent_attention", &Program::latent_attention, nb::kw_only(), "q"_a, "kv"_a, "out"_a, "norm"_a, "k_b"_a,
             "v_b"_a, "num_heads"_a, "nope_dim"_a, "rope_dim"_a, "value_dim"_a, "rank"_a, "scale"_a, "rope"_a)
        .def_prop_ro("num_operations", [](const Program& program) { return program.operations.size(); })
        .def("read", &Program::read, "buffer"_a)
        .def("allocate", &Program::allocate, "max_rows"_a, "num_pages"_a)
        .def("step", &Program::take_step, "tokens"_a, "lengths"_a, "starts"_a, "pages"_a, "wanted"_a, "prompts"_a,
             "begin"_a, "end"_a, "result"_a, "traced"_a = false)
        .def_ro("seconds", &Program::seconds);

    bind_training(m);
}

}  // namespace freedive
