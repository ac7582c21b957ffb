// A persistent team of threads: the caller and size - 1 workers. Waiting threads spin briefly, then yield or sleep, so
// that they do not take time from other processes.
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

    // Runs job(thread) on every thread of the team and returns when all have finished. Only one caller at a time.
    template <class Job>
    void run(Job&& job) {
        start([](void* context, int thread) { (*static_cast<Job*>(context))(thread); }, &job);
    }

    // The following functions are called inside a job, by every thread in the same order.
    // Calls task(i) for each i < n and ends with a barrier. Each thread processes its own share in order, since memory
    // is read faster in one long stream than in many short ones; a thread that has finished its share steals from the
    // ends of others. A thread takes up to `grain` tasks at a time, and fewer towards the end to balance the load.
    template <class Task>
    void for_each(int n, int grain, Task&& task) {
        for (Range range = take(n, grain); range.first < range.last; range = take(n, grain))
            for (int i = range.first; i < range.last; i++) task(i);
        barrier();
    }
    void barrier();
    unsigned barriers() const { return barriers_.load(std::memory_order_relaxed); }  // number of barriers passed so far

  private:
    using Function = void (*)(void*, int);
    struct Range {
        int first, last;
    };
    // The number of tasks taken from a thread's share: by the thread itself from the front, by others from the back.
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
    std::vector<Share> shares_;                      // one for each thread, of the current for_each
    alignas(64) std::atomic<int> arrived_{0};        // number of threads at the current barrier
    alignas(64) std::atomic<unsigned> barriers_{0};  // number of barriers passed
    std::atomic<bool> ending_{false};
    std::vector<std::thread> workers_;
};

}  // namespace freedive
