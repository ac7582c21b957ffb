#include "threads.h"

#include <algorithm>

namespace freedive {
namespace {

constexpr int kSpins = 2000;   // about 20 to 50 us
constexpr int kPatience = 12;  // how often a thread spins and then yields before it sleeps

thread_local int this_thread = 0;  // index in its team; the caller of start() is 0

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins until ready(), at most kSpins times. Returns whether it became ready.
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
        // During an answer the next step comes soon, and waking a thread takes longer than spinning.
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

// Returns the next tasks of the thread's own share, or the last tasks of the share with the most left.
Team::Range Team::take(int n, int grain) {
    const auto begin = [&](int thread) { return int(std::int64_t(n) * thread / size_); };
    const auto taken_of = [&](int thread) { return shares_[thread].taken.load(std::memory_order_relaxed); };
    const auto left = [&](int thread, Taken taken) {
        return begin(thread + 1) - begin(thread) - taken.front - taken.back;
    };
    for (;;) {
        int from = this_thread;
        Taken taken = taken_of(from);
        if (!left(from, taken))
            for (int other = 0; other < size_; other++)
                if (const Taken its = taken_of(other); left(other, its) > left(from, taken)) from = other, taken = its;
        const int rest = left(from, taken);
        if (!rest) return {};
        const int count = std::min(rest, std::clamp(rest / 2, std::max(1, grain / 8), grain));
        const bool own = from == this_thread;
        const Taken more{taken.front + (own ? count : 0), taken.back + (own ? 0 : count)};
        if (!shares_[from].taken.compare_exchange_weak(taken, more, std::memory_order_relaxed)) continue;
        const int first = own ? begin(from) + taken.front : begin(from + 1) - more.back;
        return {first, first + count};
    }
}

void Team::barrier() {
    const unsigned passed = barriers_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        for (Share& share : shares_) share.taken.store({}, std::memory_order_relaxed);
        barriers_.store(passed + 1, std::memory_order_release);
        return;
    }
    const auto released = [&] { return barriers_.load(std::memory_order_acquire) != passed; };
    while (!spin(released)) std::this_thread::yield();
}

}  // namespace freedive
