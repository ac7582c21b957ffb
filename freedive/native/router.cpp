// Routing: chooses the experts of each token and their weights.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "checks.h"
#include "operations.h"

namespace freedive {
namespace {

constexpr float kUnchosen = -std::numeric_limits<float>::infinity();

void softmax(float* x, int n) {
    const float top = *std::max_element(x, x + n);
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] = std::exp(x[i] - top);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

// Writes the indices of the `count` largest of merit[first, last), largest first; equal values keep index order.
// Returns the end of what it wrote.
int* take_best(const float* merit, int first, int last, int count, int* out) {
    int taken = 0;
    for (int i = first; i < last; i++) {
        if (taken == count && !(merit[i] > merit[out[count - 1]])) continue;
        int at = taken < count ? taken++ : count - 1;
        for (; at && merit[i] > merit[out[at - 1]]; at--) out[at] = out[at - 1];
        out[at] = i;
    }
    return out + count;
}

float strength(const float* group, int size, bool best_two) {
    float first = kUnchosen, second = kUnchosen;
    for (int i = 0; i < size; i++) {
        if (group[i] > first)
            second = std::exchange(first, group[i]);
        else if (group[i] > second)
            second = group[i];
    }
    return best_two ? first + second : first;
}

// Excludes the experts of all groups except the `kept` strongest.
void keep_groups(float* merit, int size, int groups, int kept, bool best_two) {
    float strengths[kMaxExperts];
    int order[kMaxExperts];
    for (int g = 0; g < groups; g++) strengths[g] = strength(merit + g * size, size, best_two);
    take_best(strengths, 0, groups, kept, order);
    for (int g = 0; g < groups; g++)
        if (std::find(order, order + kept, g) == order + kept) std::fill_n(merit + g * size, size, kUnchosen);
}

}  // namespace

Router checked(Router r) {
    require(r.num_experts > 0 && r.num_experts <= kMaxExperts, "too many experts");
    require(r.num_groups > 0 && r.num_experts % r.num_groups == 0, "groups do not divide the experts");
    require(r.num_chosen > 0 && r.kept_groups > 0 && r.kept_groups <= r.num_groups, "no expert is chosen");
    if (r.group_choice == GroupChoice::Each)
        require(r.num_chosen % r.num_groups == 0 && r.num_chosen <= r.num_experts, "groups do not divide the chosen");
    else
        require(r.num_chosen <= r.kept_groups * (r.num_experts / r.num_groups),
                "more experts are chosen than are there");
    return r;
}

// Writes the score of each expert, and its merit, by which experts are chosen.
void Router::rate(const Program& program, const float* logits, float* scores, float* merit) const {
    std::copy_n(logits, num_experts, scores);
    if (score == RouterScore::Sigmoid)
        for (int e = 0; e < num_experts; e++) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    else
        softmax(scores, num_experts);
    for (int e = 0; e < num_experts; e++)
        merit[e] = scores[e] + (choice_bias == kNone ? 0 : program.vectors[choice_bias][e]);
}

// Writes the experts with the highest merit, best first (with GroupChoice::Each: of each group). The merit of experts
// in other groups than the chosen ones becomes kUnchosen.
void Router::choose(float* merit, std::int32_t* experts) const {
    const int size = num_experts / num_groups;
    if (group_choice == GroupChoice::Each) {
        std::int32_t* next = experts;
        for (int g = 0; g < num_groups; g++)
            next = take_best(merit, g * size, (g + 1) * size, num_chosen / num_groups, next);
    } else {
        if (kept_groups < num_groups)
            keep_groups(merit, size, num_groups, kept_groups, group_choice == GroupChoice::BestTwo);
        take_best(merit, 0, num_experts, num_chosen, experts);
    }
}

// Chooses again: the best half of `experts` stays, and for the others the logits of cached ones are raised by a share
// of the range of all logits (Skliar et al. 2024, "Mixture of Cache-Conditional Experts"; they take the mean range of
// the tokens so far, which would make an answer depend on all earlier ones even if the cache were the same).
void Router::prefer(const Program& program, const float* logits, std::span<const std::uint8_t> cached,
                    const float* merit, std::int32_t* experts) const {
    float raised[kMaxExperts], scores[kMaxExperts] = {}, preferred[kMaxExperts];
    const auto [low, high] = std::minmax_element(logits, logits + num_experts);
    const float raise = program.cache_preference * (*high - *low);
    for (int e = 0; e < num_experts; e++) raised[e] = logits[e] + (cached[e] ? raise : 0);
    rate(program, raised, scores, preferred);
    for (int e = 0; e < num_experts; e++)
        if (merit[e] == kUnchosen) preferred[e] = kUnchosen;
    const int run = group_choice == GroupChoice::Each ? num_chosen / num_groups : num_chosen;
    for (int j = 0; j < num_chosen; j++)
        if (j % run < (run + 1) / 2) preferred[experts[j]] = -kUnchosen;
    choose(preferred, experts);
}

void Router::route(const Program& program, const float* logits, std::span<const std::uint8_t> cached,
                   std::int32_t* experts, float* weights) const {
    float scores[kMaxExperts] = {}, merit[kMaxExperts];
    rate(program, logits, scores, merit);
    choose(merit, experts);
    if (!cached.empty()) prefer(program, logits, cached, merit, experts);
    float sum = 1e-20f;
    for (int j = 0; j < num_chosen; j++) sum += scores[experts[j]];
    for (int j = 0; j < num_chosen; j++) {
        float weight = scores[experts[j]];
        if (renormalise) weight /= sum;
        weight *= scale;
        if (expert_scale != kNone) weight *= program.vectors[expert_scale][experts[j]];
        weights[j] = weight;
    }
}

}  // namespace freedive
