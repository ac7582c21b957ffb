// From logits to one token: temperature, top-k, top-p of what top-k left, min-p, and a random draw from the rest.
// Every function checks the sizes and indices that it is given (see checks.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace freedive {

struct Sampling {
    float temperature;
    int top_k;  // 0: all tokens
    float top_p, min_p;
};

// The tokens with the largest logits, the largest first and lower ids first on a tie, and log(sum(exp(logit))).
struct Likeliest {
    std::vector<int> tokens;
    double log_total;
};

// Returns the k likeliest tokens, 0 <= k <= size. No logit is NaN.
Likeliest likeliest(std::span<const float> logits, int k);

// Writes the logits of the tokens in `allowed`, which has one bit for each token, and minus infinity for all others.
void mask(std::span<const float> logits, std::span<const std::uint8_t> allowed, std::span<float> out);

// Writes the weight of each token that can be drawn, exp(logit / temperature) in units of the largest, and 0 for all
// other tokens.
void weigh(std::span<const float> logits, const Sampling& sampling, std::span<float> out);

// Returns the token at which the running sum of the weights passes `random` times their total, 0 <= random < 1.
int draw(std::span<const float> logits, const Sampling& sampling, double random);

}  // namespace freedive
