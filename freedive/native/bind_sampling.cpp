// Python's view of sampling.
#include "bind.h"
#include "cpu.h"
#include "sampling.h"

namespace freedive {
namespace {

const Weights& weigh_at_best(const Floats& logits, const Sampling& sampling) {
    static const Kernels& best = choose_kernels("");
    static thread_local Weights weights;  // kept, since fresh memory takes longer than what is computed
    require(logits.size() > 0, "there are no logits");
    weigh(best, view(logits), sampling, weights);
    return weights;
}

}  // namespace

void bind_sampling(nb::module_& m) {
    m.def(
        "kth_largest",
        [](Floats values, int k) {
            return kth_largest(view(values), 1 + index_below(k - 1ll, values.size(), "place"));
        },
        "values"_a, "k"_a);
    m.def(
        "mask",
        [](Floats logits, Bytes allowed, MutableFloats out) {
            require(out.size() == logits.size(), "mask: sizes do not match");
            mask(view(logits), view(allowed), out.data());
        },
        "logits"_a, "allowed"_a, "out"_a);
    m.def(
        "weigh",
        [](Floats logits, float temperature, int top_k, float top_p, float min_p, MutableFloats out) {
            require(out.size() == logits.size(), "weigh: sizes do not match");
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
}

}  // namespace freedive
