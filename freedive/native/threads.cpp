#include "threads.h"

namespace freedive {
namespace {

constexpr int kSpins = 2000;   // some 20 to 50 us
constexpr int kPatience = 12;  // spins between steps, after each of which others may have the core

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

Team::Team(int size) : size_(size) {
    for (int thread = 1; thread < size; thread++) workers_.emplace_back([this, thread] { work(thread); });
}

Team::~Team() {
    ending_ = true;
    jobs_.fetch_add(1);
    jobs_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Team::work(int thread) {
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

void Team::barrier() {
    const unsigned passed = barriers_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        barriers_.store(passed + 1, std::memory_order_release);
        return;
    }
    const auto released = [&] { return barriers_.load(std::memory_order_acquire) != passed; };
    while (!spin(released)) std::this_thread::yield();
}

}  // namespace freedive
