#include "bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "memory.h"
#include "threads.h"

namespace freedive {
namespace {

constexpr int kPasses = 5;
constexpr std::size_t kUnroll = 4;  // independent loads in flight

using Line = std::uint64_t __attribute__((vector_size(64)));

std::uint64_t read(const Line* lines, std::size_t n) {
    Line sums[kUnroll] = {};
    for (std::size_t i = 0; i < n; i += kUnroll)
        for (std::size_t j = 0; j < kUnroll; j++) sums[j] += lines[i + j];
    const Line sum = sums[0] + sums[1] + sums[2] + sums[3];
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

}  // namespace

double read_bandwidth(int num_threads, std::size_t bytes) {
    const std::size_t share = bytes / num_threads / sizeof(Line) / kUnroll * kUnroll;  // lines of each thread
    const Memory memory(share * num_threads * sizeof(Line));
    Line* lines = memory.as<Line>();
    Team team(num_threads);
    team.run([&](int thread) {
        std::fill_n(lines + thread * share, share, Line{} + 1);
    });  // each thread writes what it reads

    std::atomic<std::uint64_t> total = 0;  // uses the sum, so that the compiler keeps the loads
    double best = 0;
    for (int pass = 0; pass < kPasses; pass++) {
        const auto start = std::chrono::steady_clock::now();
        team.run([&](int thread) { total += read(lines + thread * share, share); });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, double(share * num_threads * sizeof(Line)) / seconds.count());
    }
    return best;
}

}  // namespace freedive
