// Python's view of training's layers. It converts types only: each operation checks its arrays (training.h).
#include "bind.h"

#include <nanobind/stl/string.h>

#include "../cpu.h"
#include "bind_arrays.h"
#include "training.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace freedive {
namespace {

using OptionalFloats = std::optional<Floats>;
using OptionalMutableFloats = std::optional<MutableFloats>;

void linears(Training& self, const Floats& x, const std::vector<Floats>& weights,
             const std::vector<MutableFloats>& ys) {
    nb::gil_scoped_release released;
    self.linears(view(x), views(weights), views(ys));
}

void linears_backward(Training& self, const Floats& x, const std::vector<Floats>& weights,
                      const std::vector<Floats>& d_ys, const OptionalMutableFloats& d_x,
                      const std::vector<OptionalMutableFloats>& d_weights) {
    nb::gil_scoped_release released;
    self.linears_backward(view(x), views(weights), views(d_ys), view(d_x), views(d_weights));
}

void mixture(Training& self, const Floats& x, const Floats& shares, const Ints& choices, const Floats& gate,
             const Floats& up, const Floats& down, const MutableFloats& gate_up, const MutableFloats& y) {
    nb::gil_scoped_release released;
    self.mixture({view(x), view(shares), view(choices), view(gate), view(up), view(down)}, view(gate_up), view(y));
}

void mixture_backward(Training& self, const Floats& x, const Floats& shares, const Ints& choices, const Floats& gate,
                      const Floats& up, const Floats& down, const Floats& gate_up, const Floats& d_y,
                      const MutableFloats& d_x, const MutableFloats& d_shares, const MutableFloats& d_gate,
                      const MutableFloats& d_up, const MutableFloats& d_down) {
    nb::gil_scoped_release released;
    self.mixture_backward({view(x), view(shares), view(choices), view(gate), view(up), view(down)}, view(gate_up),
                          view(d_y), {view(d_x), view(d_shares), view(d_gate), view(d_up), view(d_down)});
}

void attention(Training& self, const Floats& q, const Floats& k, const Floats& v, const OptionalFloats& turning,
               const OptionalFloats& angles, bool neighbours, const Ints& begins, float scale, const MutableFloats& out,
               const MutableFloats& log_sums) {
    nb::gil_scoped_release released;
    self.attention({view(q), view(k), view(v), view(turning), view(angles), neighbours, view(begins), scale}, view(out),
                   view(log_sums));
}

void attention_backward(Training& self, const Floats& q, const Floats& k, const Floats& v,
                        const OptionalFloats& turning, const OptionalFloats& angles, bool neighbours,
                        const Ints& begins, float scale, const Floats& out, const Floats& log_sums, const Floats& d_out,
                        const MutableFloats& d_q, const MutableFloats& d_k, const MutableFloats& d_v,
                        const OptionalMutableFloats& d_turning) {
    nb::gil_scoped_release released;
    self.attention_backward({view(q), view(k), view(v), view(turning), view(angles), neighbours, view(begins), scale},
                            view(out), view(log_sums), view(d_out), {view(d_q), view(d_k), view(d_v), view(d_turning)});
}

double cross_entropy(Training& self, const Floats& x, const Floats& head, const Ints& targets, const Floats& weights,
                     const MutableFloats& d_x, const MutableFloats& d_head) {
    nb::gil_scoped_release released;
    return self.cross_entropy(view(x), view(head), view(targets), view(weights), view(d_x), view(d_head));
}

void rms_norm(Training& self, const Floats& x, const Floats& weight, float eps, const MutableFloats& y) {
    nb::gil_scoped_release released;
    self.rms_norm(view(x), view(weight), eps, view(y));
}

void rms_norm_backward(Training& self, const Floats& x, const Floats& weight, float eps, const Floats& d_y,
                       const MutableFloats& d_x, const MutableFloats& d_weight) {
    nb::gil_scoped_release released;
    self.rms_norm_backward(view(x), view(weight), eps, view(d_y), view(d_x), view(d_weight));
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
        .def("linears", &linears, "x"_a, "weights"_a, "ys"_a)
        .def("linears_backward", &linears_backward, "x"_a, "weights"_a, "d_ys"_a, "d_x"_a.none(), "d_weights"_a)
        .def("kept_width", &Training::kept_width, "dim"_a)
        .def("mixture", &mixture, "x"_a, "shares"_a, "choices"_a, "gate"_a, "up"_a, "down"_a, "gate_up"_a, "y"_a)
        .def("mixture_backward", &mixture_backward, "x"_a, "shares"_a, "choices"_a, "gate"_a, "up"_a, "down"_a,
             "gate_up"_a, "d_y"_a, "d_x"_a, "d_shares"_a, "d_gate"_a, "d_up"_a, "d_down"_a)
        .def("attention", &attention, "q"_a, "k"_a, "v"_a, "turning"_a.none(), "angles"_a.none(), "neighbours"_a,
             "begins"_a, "scale"_a, "out"_a, "log_sums"_a)
        .def("attention_backward", &attention_backward, "q"_a, "k"_a, "v"_a, "turning"_a.none(), "angles"_a.none(),
             "neighbours"_a, "begins"_a, "scale"_a, "out"_a, "log_sums"_a, "d_out"_a, "d_q"_a, "d_k"_a, "d_v"_a,
             "d_turning"_a.none())
        .def("cross_entropy", &cross_entropy, "x"_a, "head"_a, "targets"_a, "weights"_a, "d_x"_a, "d_head"_a)
        .def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "y"_a)
        .def("rms_norm_backward", &rms_norm_backward, "x"_a, "weight"_a, "eps"_a, "d_y"_a, "d_x"_a, "d_weight"_a);
    bind_updates(m, training);
}

}  // namespace freedive
