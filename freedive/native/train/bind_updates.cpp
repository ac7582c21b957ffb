// Python's view of optimizers' updates. It converts types only.
#include "bind.h"
#include "bind_arrays.h"
#include "training.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace freedive {
namespace {

using Arrays = std::vector<MutableFloats>;

struct Updates {
    std::vector<Updated> all;
};

}  // namespace

void bind_updates(nb::module_& m, nb::class_<Training>& training) {
    nb::class_<Updates>(m, "Updates")
        .def(
            "__init__",
            [](Updates* self, const Arrays& weights, const Arrays& gradients, const Arrays& momenta,
               const Arrays& squares, const std::vector<float>& keeps, const std::vector<float>& rates) {
                new (self) Updates{
                    updated_weights(views(weights), views(gradients), views(momenta), views(squares), keeps, rates)};
            },
            nb::arg("weights").noconvert(), nb::arg("gradients").noconvert(), nb::arg("momenta").noconvert(),
            nb::arg("squares").noconvert(), "keeps"_a, "rates"_a);
    training
        .def(
            "orthogonalise",
            [](Training& self, const Arrays& stacks, float a, float b, float c, float eps, int turns) {
                nb::gil_scoped_release released;
                self.orthogonalise(views(stacks), {a, b, c, eps}, turns);
            },
            "stacks"_a, "a"_a, "b"_a, "c"_a, "eps"_a, "turns"_a)
        .def(
            "adamw",
            [](Training& self, const Updates& updates, float beta1, float beta2, float bias2, float eps, float shrink) {
                nb::gil_scoped_release released;
                self.adamw(updates.all, {beta1, beta2, bias2, eps, shrink});
            },
            "updates"_a, "beta1"_a, "beta2"_a, "bias2"_a, "eps"_a, "shrink"_a)
        .def(
            "nesterov",
            [](Training& self, const Updates& updates, float beta, float shrink) {
                nb::gil_scoped_release released;
                self.nesterov(updates.all, beta, shrink);
            },
            "updates"_a, "beta"_a, "shrink"_a)
        .def(
            "apply_update",
            [](Training& self, const Updates& updates) {
                nb::gil_scoped_release released;
                self.apply_update(updates.all);
            },
            "updates"_a);
}

}  // namespace freedive
