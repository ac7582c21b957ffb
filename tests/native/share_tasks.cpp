// The tasks of a thread team: each runs once, for every number of threads and every order of their speeds. A thread
// runs its own share in order and steals from the back of another's. Prints errors and exits with 1.
#include <cstdio>
#include <vector>

#include "../../freedive/native/threads.h"

using namespace freedive;

namespace {

int faults = 0;

void expect(bool holds, const char* what, int threads, int n, int grain) {
    if (!holds) std::printf("%s: %d threads, %d tasks, %d at a time\n", what, threads, n, grain), faults++;
}

void every_task_is_done_once(int threads, int n, int grain) {
    std::vector<std::atomic<int>> done(n);
    std::atomic<bool> early{false};
    Team team(threads);
    team.run([&](int) {
        for (int round = 0; round < 3; round++) {
            team.for_each(n, grain, [&](int task) { done[task]++; });
            for (const auto& times : done) early = early || times < round + 1;  // for_each ends with a barrier
            team.barrier();
        }
    });
    bool once = true;
    for (const auto& times : done) once = once && times == 3;
    expect(once, "not each task is done once", threads, n, grain);
    expect(!early, "a thread goes on before all tasks are done", threads, n, grain);
}

// The second of two threads waits in its first task until the other has done all other tasks.
void what_a_slow_thread_leaves_is_taken_from_its_back(int n) {
    std::atomic<int> done{0};
    std::atomic<bool> began{false};
    std::vector<int> order;
    Team team(2);
    team.run([&](int thread) {
        team.for_each(n, 1, [&](int task) {
            if (thread == 1) began = true;
            while (thread == 0 ? !began : done < n - 1) std::this_thread::yield();
            if (thread == 0) order.push_back(task);
            done++;
        });
    });
    std::vector<int> expected;
    for (int task = 0; task < n / 2; task++) expected.push_back(task);
    for (int task = n - 1; task > n / 2; task--) expected.push_back(task);
    expect(order == expected, "another order", 2, n, 1);
}

}  // namespace

int main() {
    for (const int threads : {1, 2, 3, 5})
        for (const int n : {0, 1, 2, 7, 64, 1000})
            for (const int grain : {1, 4, 64}) every_task_is_done_once(threads, n, grain);
    for (const int n : {2, 3, 10, 101}) what_a_slow_thread_leaves_is_taken_from_its_back(n);
    return faults > 0;
}
