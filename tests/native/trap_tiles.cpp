// Runs the amx level with trapped instructions, and compares its products with those of the software level. Prints the
// number of trapped instructions.
#include <cstdio>
#include <random>
#include <vector>

#include "../../freedive/native/isa/kernels.h"
#include "traps.h"

using namespace freedive;

namespace freedive {
const Kernels avx512_kernels{};  // few rows use these kernels: not tested here
}

namespace {

std::mt19937 random_bits(7);

std::vector<QuantisedGroup> random_groups(int count) {
    std::vector<QuantisedGroup> groups(count);
    for (QuantisedGroup& group : groups) {
        group = {};
        group.has_low = random_bits() % 8 == 0;
        for (int i = 0; i < kGroup; i++) {
            group.high[i] = std::int8_t(random_bits());
            if (group.has_low) group.low[i] = std::int8_t(random_bits());
        }
        for (float* x : {&group.scale, &group.scaled_sum[0], &group.scaled_sum[1]}) *x = float(random_bits() % 1000);
    }
    return groups;
}

bool same_products(Format f, int k, int rows) {
    const std::size_t bytes = panel_bytes(f, k);
    auto* panel = static_cast<std::uint8_t*>(std::aligned_alloc(64, bytes));
    for (std::size_t i = 0; i < bytes; i++) panel[i] = std::uint8_t(random_bits()) & 0xbf;  // scales are finite
    const auto groups = random_groups(rows * k / kGroup);
    std::vector<const void*> x(rows);
    for (int r = 0; r < rows; r++) x[r] = &groups[std::size_t(r) * k / kGroup];
    std::vector<float> out[2];
    for (auto& each : out) each.resize(std::size_t(rows) * kPanelRows);
    amx_kernels().linear[int(f)](panel, k, x.data(), rows, out[0].data());
    emulated_amx_kernels().linear[int(f)](panel, k, x.data(), rows, out[1].data());
    std::free(panel);
    return std::memcmp(out[0].data(), out[1].data(), out[0].size() * sizeof(float)) == 0;
}

}  // namespace

int main() {
    take_traps();
    bool same = true;
    for (int f = int(Format::Q8_0); f < kNumFormats; f++)
        for (const int rows : {6, 15, 16, 17, 33, 48}) same &= same_products(Format(f), 768, rows);
    std::printf("%d\n", num_trapped);
    return !same;
}
