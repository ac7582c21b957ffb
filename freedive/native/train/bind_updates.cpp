// What optimizers do, for Python.
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind.h"
#include "training.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace freedive {
namespace {

using MutableFloats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Stack = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Arrays = std::vector<MutableFloats>;

// Weights with what an optimizer keeps of them; `squares` may be none.
std::vector<Updated> updated(const Arrays& weights, const Arrays& gradients, const Arrays& momenta,
                             const Arrays& squares, const std::vector<float>& keeps, const std::vector<float>& rates) {
    const std::size_t count = weights.size();
    if (gradients.size() != count || momenta.size() != count || keeps.size() != count || rates.size() != count ||
        (!squares.empty() && squares.size() != count))
        throw std::invalid_argument("lists differ in length");
    std::vector<Updated> all;
    for (std::size_t i = 0; i < count; i++) {
        const MutableFloats* square = squares.empty() ? nullptr : &squares[i];
        for (const MutableFloats* each : {&gradients[i], &momenta[i], square})
            if (each && each->size() != weights[i].size()) throw std::invalid_argument("an array has the wrong shape");
        all.push_back({weights[i].data(), gradients[i].data(), momenta[i].data(), square ? square->data() : nullptr,
                       std::ptrdiff_t(weights[i].size()), keeps[i], rates[i]});
    }
    return all;
}

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
                new (self) Updates{updated(weights, gradients, momenta, squares, keeps, rates)};
            },
            nb::arg("weights").noconvert(), nb::arg("gradients").noconvert(), nb::arg("momenta").noconvert(),
            nb::arg("squares").noconvert(), "keeps"_a, "rates"_a);
    training
        .def(
            "orthogonalise",
            [](Training& self, const std::vector<Stack>& stacks, float a, float b, float c, float eps, int turns) {
                std::vector<Matrices> all;
                for (const Stack& each : stacks)
                    all.push_back({each.data(), int(each.shape(0)), int(each.shape(1)), int(each.shape(2))});
                nb::gil_scoped_release released;
                self.orthogonalise(all, {a, b, c, eps}, turns);
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
