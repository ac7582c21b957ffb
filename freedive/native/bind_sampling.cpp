// Python's view of sampling. It converts types only.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "sampling.h"

namespace freedive {

void bind_sampling(nb::module_& m) {
    m.def(
        "likeliest",
        [](Floats logits, int k) {
            Likeliest found = likeliest(view(logits), k);
            return std::tuple(std::move(found.tokens), found.log_total);
        },
        "logits"_a, "k"_a);
    m.def(
        "mask",
        [](Floats logits, Bytes allowed, MutableFloats out) {
            mask(view(logits), view(allowed), {out.data(), out.size()});
        },
        "logits"_a, "allowed"_a, "out"_a);
    m.def(
        "weigh",
        [](Floats logits, float temperature, int top_k, float top_p, float min_p, MutableFloats out) {
            weigh(view(logits), {temperature, top_k, top_p, min_p}, {out.data(), out.size()});
        },
        "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "out"_a);
    m.def(
        "draw",
        [](Floats logits, float temperature, int top_k, float top_p, float min_p, double random) {
            return draw(view(logits), {temperature, top_k, top_p, min_p}, random);
        },
        "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "random"_a);
}

}  // namespace freedive
