// From logits to one token: temperature, top-k, top-p of what top-k left, min-p, and a draw from the rest.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "isa/kernels.h"

namespace freedive {

struct Sampling {
    float temperature;
    int top_k;  // 0: all
    float top_p, min_p;
};

// The k-th largest of `values`, 1 <= k <= size; none is NaN.
float kth_largest(std::span<const float> values, int k);

// Writes the logits of the tokens in `allowed`, a bit for each, and minus infinity for all others.
void mask(std::span<const float> logits, std::span<const std::uint8_t> allowed, float* out);

// Tokens weigh exp(logit / temperature), the likeliest one 1. Those from `floor` on may be drawn: it is above 0, and
// equals stay together. Weights are followed by zeros up to whole blocks, of which `peaks` holds the largest.
struct Weights {
    std::vector<float> values, peaks;
    float floor = 0;
};
void weigh(const Kernels& kernels, std::span<const float> logits, const Sampling& sampling, Weights& weights);

// The token where the running sum of what may be drawn passes `random` times the total, 0 <= random < 1.
int draw(const Weights& weights, double random);

}  // namespace freedive
