// Packs a matrix on several threads, each of which takes one panel at a time.
#include <atomic>
#include <thread>
#include <vector>

#include "../checks.h"

namespace freedive {

bool pack_matrix(Format f, std::span<const std::uint8_t> src, int rows, int k, std::span<std::uint8_t> dst,
                 int num_threads) {
    require(dst.size() == checked_bytes(f, rows, k) && src.size() == source_row_bytes(f, k) * rows,
            "pack: sizes do not match the shape");
    std::atomic<int> next = 0;
    std::atomic<bool> finite = true;
    const auto work = [&] {
        for (int p; (p = next++) < num_panels(rows);)
            if (!pack_panels(f, src.data(), rows, k, p, p + 1, dst.data())) finite = false;
    };
    std::vector<std::thread> helpers;
    for (int t = 1; t < num_threads; t++) helpers.emplace_back(work);
    work();
    for (std::thread& t : helpers) t.join();
    return finite.load();
}

}  // namespace freedive
