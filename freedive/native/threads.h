// A persistent team of threads: the caller and n - 1 workers. Waiting threads spin briefly, then yield or sleep, so
// that a busy machine is not made busier.
#pragma once

#include <atomic>
#include <cstdint>
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
    // Calls task(i) for each i < n; ends with a barrier. Each thread goes through a share of its own in order, since
    // one long stream is read faster than many short ones, and one that is done takes from the ends of others. Up to
    // `grain` tasks are taken at a time, and fewer towards the end, so that threads end together.
    template <class Task>
    void for_each(int n, int grain, Task&& task) {
        for (Range range = take(n, grain); range.first < range.last; range = take(n, grain))
            for (int i = range.first; i < range.last; i++) task(i);
        barrier();
    }
    void barrier();
    unsigned barriers() const { return barriers_.load(std::memory_order_relaxed); }  // passed so far

  private:
    using Function = void (*)(void*, int);
    struct Range {
        int first, last;
    };
    // How many tasks of a thread's share are taken: by itself from the front, by others from the back.
    struct Taken {
        std::int32_t front = 0, back = 0;
    };
    struct alignas(64) Share {
        std::atomic<Taken> taken{};
    };
    Range take(int n, int grain);
    void start(Function function, void* context);
    void work(int thread);

    const int size_;
    Function function_ = nullptr;
    void* context_ = nullptr;
    alignas(64) std::atomic<unsigned> jobs_{0};      // counts jobs; a change wakes the workers
    std::vector<Share> shares_;                      // of the current for_each, by thread
    alignas(64) std::atomic<int> arrived_{0};        // threads at the current barrier
    alignas(64) std::atomic<unsigned> barriers_{0};  // barriers passed
    std::atomic<bool> ending_{false};
    std::vector<std::thread> workers_;
};

}  // namespace freedive
