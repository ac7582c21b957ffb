// Packing on several threads.
#include <atomic>
#include <thread>
#include <vector>

#include "format.h"

namespace freedive {

bool pack_matrix(Format f, const std::uint8_t* src, int rows, int k, std::uint8_t* dst, int num_threads) {
    std::atomic<int> next = 0;
    std::atomic<bool> finite = true;
    const auto work = [&] {
        for (int p; (p = next++) < num_panels(rows);)
            if (!pack_panels(f, src, rows, k, p, p + 1, dst)) finite = false;
    };
    std::vector<std::thread> helpers;
    for (int t = 1; t < num_threads; t++) helpers.emplace_back(work);
    work();
    for (std::thread& t : helpers) t.join();
    return finite.load();
}

}  // namespace freedive
