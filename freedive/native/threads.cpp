#include "threads.h"

#include <algorithm>

namespace freedive {
namespace {

constexpr int kSpins = 2000;   // some 20 to 50 us
constexpr int kPatience = 12;  // spins between steps, after each of which others may have the core

thread_local int this_thread = 0;  // of its team; who calls start() is the first

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins until ready() or until patience ends; says which.
template <class Ready>
bool spin(Ready&& ready) {
    for (int i = 0; i < kSpins; i++) {
        if (ready()) return true;
        pause();
    }
    return false;
}

}  // namespace

Team::Team(int size) : size_(size), shares_(size) {
    for (int thread = 1; thread < size; thread++) workers_.emplace_back([this, thread] { work(thread); });
}

Team::~Team() {
    ending_ = true;
    jobs_.fetch_add(1);
    jobs_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Team::work(int thread) {
    this_thread = thread;
    for (unsigned seen = 0;; seen++) {
        const auto called = [&] { return jobs_.load(std::memory_order_acquire) != seen; };
        // Within an answer the next step comes soon, and being woken takes longer than looking.
        for (int i = 0; i < kPatience && !spin(called); i++) std::this_thread::yield();
        jobs_.wait(seen);
        if (ending_) return;
        function_(context_, thread);
        barrier();
    }
}

void Team::start(Function function, void* context) {
    function_ = function;
    context_ = context;
    jobs_.fetch_add(1, std::memory_order_release);
    jobs_.notify_all();
    function(context, 0);
    barrier();
}

Team::Range Team::take(int n, int grain) {
    const auto begin = [&](int thread) { return int(std::int64_t(n) * thread / size_); };
    const int least = std::max(1, grain / 8);
    for (;;) {
        int from = this_thread, left = 0;
        std::uint64_t taken = 0;
        for (int i = 0; i < size_ && (i != 1 || !left); i++) {  // one's own, or else of others what has most left
            const int other = (this_thread + i) % size_;
            const std::uint64_t seen = shares_[other].taken.load(std::memory_order_relaxed);
            const int rest = begin(other + 1) - begin(other) - int(std::uint32_t(seen)) - int(seen >> 32);
            if (rest > left) from = other, left = rest, taken = seen;
        }
        if (!left) return {};
        const int count = std::min(left, std::clamp(left / size_, least, grain));
        const bool own = from == this_thread;
        const std::uint64_t more = own ? std::uint64_t(count) : std::uint64_t(count) << 32;
        if (!shares_[from].taken.compare_exchange_weak(taken, taken + more, std::memory_order_relaxed)) continue;
        const int first = own ? begin(from) + int(std::uint32_t(taken)) : begin(from + 1) - int(taken >> 32) - count;
        return {first, first + count};
    }
}

void Team::barrier() {
    const unsigned passed = barriers_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        for (Share& share : shares_) share.taken.store(0, std::memory_order_relaxed);
        barriers_.store(passed + 1, std::memory_order_release);
        return;
    }
    const auto released = [&] { return barriers_.load(std::memory_order_acquire) != passed; };
    while (!spin(released)) std::this_thread::yield();
}

}  // namespace freedive
