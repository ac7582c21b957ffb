// A persistent team of threads: the caller and n - 1 workers. Waiting threads spin briefly, then yield or sleep, so
// that a busy machine is not made busier.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace freedive {

class Team {
  public:
    explicit Team(int size);
    ~Team();
    Team(const Team&) = delete;
    int size() const { return size_; }

    // Runs job(thread) on every thread of the team; returns when all have ended. One caller at a time.
    template <class Job>
    void run(Job&& job) {
        start([](void* context, int thread) { (*static_cast<Job*>(context))(thread); }, &job);
    }

    // Inside a job: every thread calls these in the same order.
    // Calls task(i) for each i < n, on whichever thread is free; ends with a barrier. Up to `grain` neighbours are
    // taken at a time, for long streams, and fewer towards the end, so that threads end together.
    template <class Task>
    void for_each(int n, int grain, Task&& task) {
        const int least = std::max(1, grain / 8);
        for (int first = next_.load(std::memory_order_relaxed); first < n;) {
            const int count = std::clamp((n - first) / (2 * size_), least, grain), last = std::min(n, first + count);
            if (!next_.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
            for (int i = first; i < last; i++) task(i);
            first = next_.load(std::memory_order_relaxed);
        }
        barrier();
    }
    void barrier();
    unsigned barriers() const { return barriers_.load(std::memory_order_relaxed); }  // passed so far

  private:
    using Function = void (*)(void*, int);
    void start(Function function, void* context);
    void work(int thread);

    const int size_;
    Function function_ = nullptr;
    void* context_ = nullptr;
    alignas(64) std::atomic<unsigned> jobs_{0};      // counts jobs; a change wakes the workers
    alignas(64) std::atomic<int> next_{0};           // next unclaimed task of the current for_each
    alignas(64) std::atomic<int> arrived_{0};        // threads at the current barrier
    alignas(64) std::atomic<unsigned> barriers_{0};  // barriers passed
    std::atomic<bool> ending_{false};
    std::vector<std::thread> workers_;
};

}  // namespace freedive
