#include "program.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "checks.h"

namespace freedive {

void Partials::reserve(int count, int width) {
    if (states_.size() < std::size_t(count)) states_.resize(count);
    const std::size_t floats = std::size_t(count) * width;
    if (values_.size() < floats) values_.resize(floats);
}

AttendPartial* Partials::start(int first, int count, int width) {
    float* values = values_.data() + std::size_t(first) * width;
    std::fill_n(values, std::size_t(count) * width, 0.0f);
    for (int i = 0; i < count; i++) states_[first + i] = {kNoScore, 0, values + std::size_t(i) * width};
    return states_.data() + first;
}

void Program::allocate(int rows, int num_pages, int num_slots, int num_sequences) {
    require(rows > 0 && rows <= kMaxDim && num_pages > 0, "a program needs memory for rows and pages");
    require(num_sequences >= 0 && num_slots >= num_sequences, "a program has fewer slots than sequences");
    max_rows = rows;
    for (Buffer& b : buffers) b.memory = Memory(std::size_t(memory_rows()) * b.stride * sizeof(float));
    for (Routes& each : routes) {
        const std::size_t count = std::size_t(memory_rows()) * each.stride();
        each.experts = Memory(count * sizeof(std::int32_t)), each.weights = Memory(count * sizeof(float));
    }
    for (const Weight& w : weights) widest = std::max(widest, num_panels(w.k) * kPanelRows);
    const std::size_t cells = std::size_t(memory_rows()) * widest;
    normed = Memory(cells * sizeof(float));
    codes = Memory(cells / kGroup * sizeof(QuantisedGroup));
    hidden = Memory(std::size_t(rows) * hidden_width * sizeof(float));
    scratch.resize(team.size());
    every_row_.resize(rows);
    std::iota(every_row_.begin(), every_row_.end(), 0);
    cache.allocate(num_pages);
    states.allocate(num_slots, num_sequences);
    experts->allocate();
}

void Program::page_experts(const PagingOptions& options) {
    require(operations.empty(), "the source of experts must be chosen before operations are recorded");
    experts = std::make_shared<PagedExperts>(options, team.size());
}

void Program::split_rows() {
    in_bf16_.clear(), others_.clear();
    for (int row = 0; row < step.num_rows(Rows::Tokens); row++)
        (is_bf16(Rows::Tokens, row) ? in_bf16_ : others_).push_back(row);
}

void Program::run(Step next, int begin, int end, bool traced) {
    index_below(end, operations.size() + 1, "operation"), index_below(begin, end + 1ull, "operation");
    using Clock = std::chrono::steady_clock;
    std::vector<std::vector<Clock::time_point>> ends(team.size());  // for each thread, of each operation
    auto last = Clock::now();
    const auto lap = [&](Clock::time_point now) {
        seconds.push_back(std::chrono::duration<double>(now - last).count());
        last = now;
    };
    seconds.clear();
    step = std::move(next);
    split_rows();
    const std::span part(operations.begin() + begin, operations.begin() + end);
    for (const auto& operation : part) operation->prepare(*this);
    if (traced) lap(Clock::now());
    team.run([&](int thread) {
        for (const auto& operation : part) {
            operation->run(*this, thread);
            if (traced) ends[thread].push_back(Clock::now());
        }
    });
    // An operation ends when the first thread leaves its barrier; others may wake up later.
    for (std::size_t i = 0; traced && i < part.size(); i++) {
        auto first = ends[0][i];
        for (const auto& thread : ends) first = std::min(first, thread[i]);
        lap(first);
    }
    try {
        experts->check();
    } catch (const UnreadableWeights& error) {
        unread_rows = rows_of(error.records);
        throw;
    }
}

// Returns the rows of the step that chose one of the experts of `records`.
std::vector<int> Program::rows_of(const std::vector<UnreadableWeights::Record>& records) const {
    std::vector<int> rows;
    for (int row = 0; row < step.num_rows(Rows::Tokens); row++)
        if (std::any_of(records.begin(), records.end(), [&](const auto& record) {
                const Routes& made = routes[record.layer];
                const std::int32_t* chosen = made.experts_of(row);
                return std::find(chosen, chosen + made.num_chosen, record.expert) != chosen + made.num_chosen;
            }))
            rows.push_back(row);
    return rows;
}

}  // namespace freedive
