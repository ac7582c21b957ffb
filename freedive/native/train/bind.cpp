#include "bind.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "../cpu.h"
#include "training.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace freedive {
namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Choices = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using Arrays = std::vector<MutableFloats>;

template <class Array>
void expect(const Array& array, std::initializer_list<std::size_t> shape) {
    bool fits = array.ndim() == shape.size();
    for (std::size_t i = 0; fits && i < shape.size(); i++) fits = array.shape(i) == shape.begin()[i];
    if (!fits) throw std::invalid_argument("an array has the wrong shape");
}

// One linear layer's [out, in] and rows [rows, out]. Returns how many it makes of a row.
int linear_out(const Floats& x, const Floats& weight, const auto& y) {
    expect(weight, {weight.shape(0), x.shape(1)}), expect(y, {x.shape(0), weight.shape(0)});
    return int(weight.shape(0));
}
LinearShape linear_shape(const Floats& x, std::size_t weights, std::size_t ys) {
    if (x.ndim() != 2 || weights != ys) throw std::invalid_argument("an array has the wrong shape");
    return {int(x.shape(0)), int(x.shape(1))};
}

MixtureShape mixture_shape(const Training& self, const Floats& x, const Floats& shares, const Choices& choices,
                           const Floats& gate, const Floats& up, const Floats& down, const auto& gate_up) {
    const std::size_t tokens = x.shape(0), hidden = x.shape(1), chosen = choices.shape(1);
    const std::size_t experts = gate.shape(0), dim = gate.shape(1);
    expect(shares, {tokens, chosen}), expect(choices, {tokens, chosen}),
        expect(gate_up, {tokens * chosen, 2 * std::size_t(self.kept_width(int(dim)))});
    expect(gate, {experts, dim, hidden}), expect(up, {experts, dim, hidden}), expect(down, {experts, hidden, dim});
    for (std::size_t i = 0; i < tokens * chosen; i++)
        if (choices.data()[i] < 0 || choices.data()[i] >= std::int64_t(experts))
            throw std::invalid_argument("there is no such expert");
    return {int(tokens), int(chosen), int(experts), int(hidden), int(dim)};
}

// The last part of keys, for all heads, and the angles it is turned by; neither where nothing turns.
struct Turning {
    std::optional<Floats> rows, angles;
    bool neighbours;
    Rotation rotation(std::size_t tokens) const {
        if (!rows) return {};
        const std::size_t dim = rows->shape(1);
        expect(*rows, {tokens, dim}), expect(*angles, {2, tokens, dim / 2});
        return {angles->data(), std::ptrdiff_t(tokens), int(dim / 2 * 2), neighbours};
    }
    const float* data() const { return rows ? rows->data() : nullptr; }
};

AttentionShape attention_shape(const Floats& q, const Floats& k, const Floats& v, const Turning& turning,
                               const Tokens& begins, const auto& log_sums, float scale) {
    const std::size_t tokens = q.shape(0), heads = q.shape(1), dim = q.shape(2);
    const Rotation rotation = turning.rotation(tokens);
    expect(k, {tokens, heads, dim - rotation.dim}), expect(v, {tokens, heads, dim}), expect(log_sums, {tokens * heads});
    const std::int64_t* first = begins.data();
    const std::int64_t* last = first + begins.shape(0) - 1;
    if (last < first || *first != 0 || *last != std::int64_t(tokens) || !std::is_sorted(first, last + 1))
        throw std::invalid_argument("sequences do not lie end to end");
    return {first, int(last - first), int(heads), int(dim), scale, rotation};
}

NormShape norm_shape(const Floats& x, const Floats& weight, const auto& y, float eps) {
    const std::size_t rows = x.shape(0), dim = x.shape(1);
    expect(weight, {dim}), expect(y, {rows, dim});
    return {int(rows), int(dim), eps};
}

CrossEntropyShape cross_entropy_shape(const Floats& x, const Floats& head, const Tokens& targets,
                                      const Floats& weights) {
    const std::size_t rows = x.shape(0), hidden = x.shape(1), vocab = head.shape(0);
    expect(head, {vocab, hidden}), expect(targets, {rows}), expect(weights, {rows});
    for (std::size_t i = 0; i < rows; i++)
        if (targets.data()[i] < 0 || targets.data()[i] >= std::int64_t(vocab))
            throw std::invalid_argument("there is no such token");
    return {int(rows), int(hidden), int(vocab)};
}

}  // namespace

void bind_training(nb::module_& m) {
    nb::class_<Training> training(m, "Training");
    training
        .def(
            "__init__",
            [](Training* self, const std::string& isa, int num_threads, bool bfloat16) {
                const Kernels& kernels = choose_kernels(isa);
                new (self) Training(kernels.train, kernels.products[bfloat16], num_threads);
            },
            "isa"_a, "num_threads"_a, "bfloat16"_a = false)
        .def(
            "linears",
            [](Training& self, Floats x, const std::vector<Floats>& weights, const Arrays& ys) {
                const LinearShape shape = linear_shape(x, weights.size(), ys.size());
                std::vector<Linear> all;
                for (std::size_t i = 0; i < ys.size(); i++)
                    all.push_back({weights[i].data(), linear_out(x, weights[i], ys[i]), ys[i].data()});
                nb::gil_scoped_release released;
                self.linears(shape, x.data(), all);
            },
            "x"_a, "weights"_a, "ys"_a)
        .def(
            "linears_backward",
            [](Training& self, Floats x, const std::vector<Floats>& weights, const std::vector<Floats>& d_ys,
               std::optional<MutableFloats> d_x, const std::vector<std::optional<MutableFloats>>& d_weights) {
                const LinearShape shape = linear_shape(x, weights.size(), d_ys.size());
                if (d_weights.size() != weights.size()) throw std::invalid_argument("lists differ in length");
                std::vector<LinearGradient> all;
                for (std::size_t i = 0; i < d_ys.size(); i++)
                    all.push_back({weights[i].data(), linear_out(x, weights[i], d_ys[i]), d_ys[i].data(),
                                   d_weights[i] ? d_weights[i]->data() : nullptr});
                nb::gil_scoped_release released;
                self.linears_backward(shape, x.data(), all, d_x ? d_x->data() : nullptr);
            },
            "x"_a, "weights"_a, "d_ys"_a, "d_x"_a.none(), "d_weights"_a)
        .def("kept_width", &Training::kept_width, "dim"_a)
        .def(
            "mixture",
            [](Training& self, Floats x, Floats shares, Choices choices, Floats gate, Floats up, Floats down,
               MutableFloats gate_up, MutableFloats y) {
                const MixtureShape shape = mixture_shape(self, x, shares, choices, gate, up, down, gate_up);
                expect(y, {x.shape(0), x.shape(1)});
                nb::gil_scoped_release released;
                self.mixture(shape, x.data(), shares.data(), choices.data(), {gate.data(), up.data(), down.data()},
                             gate_up.data(), y.data());
            },
            "x"_a, "shares"_a, "choices"_a, "gate"_a, "up"_a, "down"_a, "gate_up"_a, "y"_a)
        .def(
            "mixture_backward",
            [](Training& self, Floats x, Floats shares, Choices choices, Floats gate, Floats up, Floats down,
               Floats gate_up, Floats d_y, MutableFloats d_x, MutableFloats d_shares, MutableFloats d_gate,
               MutableFloats d_up, MutableFloats d_down) {
                const MixtureShape shape = mixture_shape(self, x, shares, choices, gate, up, down, gate_up);
                nb::gil_scoped_release released;
                self.mixture_backward(shape, x.data(), shares.data(), choices.data(),
                                      {gate.data(), up.data(), down.data()}, gate_up.data(), d_y.data(),
                                      {d_x.data(), d_shares.data(), d_gate.data(), d_up.data(), d_down.data()});
            },
            "x"_a, "shares"_a, "choices"_a, "gate"_a, "up"_a, "down"_a, "gate_up"_a, "d_y"_a, "d_x"_a, "d_shares"_a,
            "d_gate"_a, "d_up"_a, "d_down"_a)
        .def(
            "attention",
            [](Training& self, Floats q, Floats k, Floats v, std::optional<Floats> turning,
               std::optional<Floats> angles, bool neighbours, Tokens begins, float scale, MutableFloats out,
               MutableFloats log_sums) {
                const Turning last{turning, angles, neighbours};
                const AttentionShape shape = attention_shape(q, k, v, last, begins, log_sums, scale);
                nb::gil_scoped_release released;
                self.attention(shape, {q.data(), k.data(), v.data(), last.data()}, out.data(), log_sums.data());
            },
            "q"_a, "k"_a, "v"_a, "turning"_a.none(), "angles"_a.none(), "neighbours"_a, "begins"_a, "scale"_a, "out"_a,
            "log_sums"_a)
        .def(
            "attention_backward",
            [](Training& self, Floats q, Floats k, Floats v, std::optional<Floats> turning,
               std::optional<Floats> angles, bool neighbours, Tokens begins, float scale, Floats out, Floats log_sums,
               Floats d_out, MutableFloats d_q, MutableFloats d_k, MutableFloats d_v,
               std::optional<MutableFloats> d_turning) {
                const Turning last{turning, angles, neighbours};
                const AttentionShape shape = attention_shape(q, k, v, last, begins, log_sums, scale);
                nb::gil_scoped_release released;
                self.attention_backward(shape, {q.data(), k.data(), v.data(), last.data()}, out.data(), log_sums.data(),
                                        d_out.data(),
                                        {d_q.data(), d_k.data(), d_v.data(), d_turning ? d_turning->data() : nullptr});
            },
            "q"_a, "k"_a, "v"_a, "turning"_a.none(), "angles"_a.none(), "neighbours"_a, "begins"_a, "scale"_a, "out"_a,
            "log_sums"_a, "d_out"_a, "d_q"_a, "d_k"_a, "d_v"_a, "d_turning"_a.none())
        .def(
            "cross_entropy",
            [](Training& self, Floats x, Floats head, Tokens targets, Floats weights, MutableFloats d_x,
               MutableFloats d_head) {
                const CrossEntropyShape shape = cross_entropy_shape(x, head, targets, weights);
                nb::gil_scoped_release released;
                return self.cross_entropy(shape, x.data(), head.data(), targets.data(), weights.data(), d_x.data(),
                                          d_head.data());
            },
            "x"_a, "head"_a, "targets"_a, "weights"_a, "d_x"_a, "d_head"_a)
        .def(
            "rms_norm",
            [](Training& self, Floats x, Floats weight, float eps, MutableFloats y) {
                const NormShape shape = norm_shape(x, weight, y, eps);
                nb::gil_scoped_release released;
                self.rms_norm(shape, x.data(), weight.data(), y.data());
            },
            "x"_a, "weight"_a, "eps"_a, "y"_a)
        .def(
            "rms_norm_backward",
            [](Training& self, Floats x, Floats weight, float eps, Floats d_y, MutableFloats d_x,
               MutableFloats d_weight) {
                const NormShape shape = norm_shape(x, weight, d_y, eps);
                nb::gil_scoped_release released;
                self.rms_norm_backward(shape, x.data(), weight.data(), d_y.data(), d_x.data(), d_weight.data());
            },
            "x"_a, "weight"_a, "eps"_a, "d_y"_a, "d_x"_a, "d_weight"_a);
    bind_updates(m, training);
}

}  // namespace freedive
