#include "sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "checks.h"
#include "cpu.h"

namespace freedive {
namespace {

constexpr int kBlock = kPeakBlock, kLanes = 16;
constexpr int kBinBits = 18;  // low bits of a weight that its bin ignores: weights of a bin are within 3% of each other
constexpr int kBins = (std::bit_cast<std::uint32_t>(1.0f) >> kBinBits) + 1;

// Tokens with weights from `floor` on can be drawn; it is above 0, and equal weights are never separated. Zeros follow
// the weights up to a whole block, and `peaks` holds the largest weight of each block.
struct Weights {
    std::vector<float> values, peaks;
    float floor = 0;
    float drawable(std::size_t token) const { return values[token] >= floor ? values[token] : 0; }
};

int bin(float weight) { return int(std::bit_cast<std::uint32_t>(weight) >> kBinBits); }

std::span<const float> block_of(std::span<const float> values, std::size_t index) {
    return values.subspan(index * kBlock, std::min<std::size_t>(kBlock, values.size() - index * kBlock));
}

float kth_largest(std::span<const float> values, const std::vector<float>& peaks, int k) {
    std::vector<float> ordered = peaks, candidates;
    float least = -std::numeric_limits<float>::infinity();
    if (k <= int(peaks.size())) {  // k blocks reach the k-th peak, so the k largest values do
        std::nth_element(ordered.begin(), ordered.begin() + (k - 1), ordered.end(), std::greater<>());
        least = ordered[k - 1];
    }
    for (std::size_t b = 0; b < peaks.size(); b++)
        if (peaks[b] >= least)
            for (const float value : block_of(values, b))
                if (value >= least) candidates.push_back(value);
    std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), std::greater<>());
    return candidates[k - 1];
}

// Calls each(weight) for all weights of at least `floor`.
template <class Each>
void for_weights(const Weights& weights, float floor, Each&& each) {
    for (std::size_t b = 0; b < weights.peaks.size(); b++)
        if (weights.peaks[b] >= floor)
            for (const float w : block_of(weights.values, b))
                if (w >= floor) each(w);
}

// Returns the smallest of the largest weights that together make up `top_p` of the weights of at least the floor. Sums
// of bins find the bin of that weight, which is the only one to be sorted.
float nucleus(const Weights& weights, float top_p) {
    double bins[kBins] = {}, total = 0, sum = 0;
    for_weights(weights, weights.floor, [&](float w) { bins[bin(w)] += w; });
    for (const double b : bins) total += b;
    const double wanted = top_p * total;
    int last = kBins - 1;
    while (last > bin(weights.floor) && sum + bins[last] < wanted) sum += bins[last--];
    std::vector<float> inside;
    const float least = std::max(weights.floor, std::bit_cast<float>(std::uint32_t(last) << kBinBits));
    for_weights(weights, least, [&](float w) {
        if (bin(w) == last) inside.push_back(w);
    });
    std::sort(inside.begin(), inside.end(), std::greater<>());
    for (const float w : inside)
        if ((sum += w) >= wanted) return w;
    return least;
}

double sum_of_block(const Weights& weights, std::size_t block) {
    if (weights.peaks[block] < weights.floor) return 0;
    const float* values = weights.values.data() + block * kBlock;
    float lanes[kLanes] = {};
    for (int i = 0; i < kBlock; i += kLanes)
        for (int j = 0; j < kLanes; j++) lanes[j] += values[i + j] >= weights.floor ? values[i + j] : 0;
    double sum = 0;
    for (const float lane : lanes) sum += lane;
    return sum;
}

const Weights& weights_of(std::span<const float> logits, const Sampling& sampling) {
    static const Kernels& kernels = choose_kernels("");
    static thread_local Weights weights;  // kept, since getting fresh memory takes longer than the computation
    require(!logits.empty(), "there are no logits");
    const std::size_t blocks = (logits.size() + kBlock - 1) / kBlock, whole = logits.size() / kBlock * kBlock;
    float rest[kBlock];
    std::fill(std::copy(logits.begin() + whole, logits.end(), rest), rest + kBlock,
              -std::numeric_limits<float>::infinity());
    weights.values.resize(blocks * kBlock), weights.peaks.resize(blocks);
    const auto find_peaks = [&](const float* whole_blocks, const float* last) {
        kernels.peaks(whole_blocks, int(whole), weights.peaks.data());
        if (whole < logits.size()) kernels.peaks(last, kBlock, weights.peaks.data() + blocks - 1);
    };
    find_peaks(logits.data(), rest);
    const float top = *std::max_element(weights.peaks.begin(), weights.peaks.end());
    float* values = weights.values.data();
    kernels.weigh(logits.data(), int(whole), top, sampling.temperature, values);
    if (whole < logits.size()) kernels.weigh(rest, kBlock, top, sampling.temperature, values + whole);
    find_peaks(values, values + whole);

    weights.floor = std::numeric_limits<float>::min();
    const auto raise = [&](float floor) { weights.floor = std::max(weights.floor, floor); };
    if (0 < sampling.top_k && sampling.top_k < int(logits.size()))
        raise(kth_largest(weights.values, weights.peaks, sampling.top_k));
    if (sampling.top_p < 1) raise(nucleus(weights, sampling.top_p));
    raise(sampling.min_p);
    return weights;
}

}  // namespace

Likeliest likeliest(std::span<const float> logits, int k) {
    index_below(k, logits.size() + 1, "number of tokens");
    const Weights& weights = weights_of(logits, {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0});
    // Weights are rounded, so that they may order two logits wrongly that are nearly equal.
    const float least = 0.999f * kth_largest(weights.values, weights.peaks, std::max(k, 1));
    Likeliest found{{}, 0};
    for (std::size_t b = 0; b < weights.peaks.size(); b++) {
        found.log_total += sum_of_block(weights, b);
        if (weights.peaks[b] >= least)
            for (std::size_t i = b * kBlock; i < std::min(logits.size(), (b + 1) * kBlock); i++)
                if (weights.values[i] >= least) found.tokens.push_back(int(i));
    }
    std::stable_sort(found.tokens.begin(), found.tokens.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    found.log_total = std::log(found.log_total) + (found.tokens.empty() ? 0 : logits[found.tokens[0]]);
    found.tokens.resize(std::min(found.tokens.size(), std::size_t(k)));  // none is found among NaNs
    return found;
}

void mask(std::span<const float> logits, std::span<const std::uint8_t> allowed, std::span<float> out) {
    require(out.size() == logits.size(), "mask: sizes do not match");
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    static const auto offsets = [] {  // for the tokens of each byte; adding them keeps a NaN
        std::array<std::array<float, 8>, 256> table;
        for (int byte = 0; byte < 256; byte++)
            for (int bit = 0; bit < 8; bit++) table[byte][bit] = byte >> bit & 1 ? 0.0f : nothing;
        return table;
    }();
    for (std::size_t first = 0; first < logits.size(); first += 8) {
        const auto& offset = offsets[first / 8 < allowed.size() ? allowed[first / 8] : 0];
        if (first + 8 <= logits.size())
            for (std::size_t i = 0; i < 8; i++) out[first + i] = logits[first + i] + offset[i];
        else
            for (std::size_t i = 0; first + i < logits.size(); i++) out[first + i] = logits[first + i] + offset[i];
    }
}

void weigh(std::span<const float> logits, const Sampling& sampling, std::span<float> out) {
    require(out.size() == logits.size(), "weigh: sizes do not match");
    const Weights& weights = weights_of(logits, sampling);
    for (std::size_t i = 0; i < out.size(); i++) out[i] = weights.drawable(i);
}

int draw(std::span<const float> logits, const Sampling& sampling, double random) {
    const Weights& weights = weights_of(logits, sampling);
    std::vector<double> sums(weights.peaks.size());
    double total = 0;
    for (std::size_t b = 0; b < sums.size(); b++) total += sums[b] = sum_of_block(weights, b);
    double rest = random * total;
    // If rounding carries the target past the end, the last one is chosen.
    const auto find = [&](std::size_t begin, std::size_t end, auto&& size) {
        std::size_t found = begin;
        for (std::size_t i = begin; i < end; i++) {
            const double s = size(i);
            if (s == 0) continue;
            found = i;
            if (rest < s) break;
            rest -= s;
        }
        return found;
    };
    const std::size_t block = find(0, sums.size(), [&](std::size_t b) { return sums[b]; });
    return int(find(block * kBlock, (block + 1) * kBlock, [&](std::size_t i) { return weights.drawable(i); }));
}

}  // namespace freedive
