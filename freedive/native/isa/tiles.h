// The tile registers of AMX: eight of up to 16 rows of 64 bytes. In assembly, which needs no flags and says that it
// reads and writes memory: the intrinsics of g++ 12 do not, and stores stray past them.
#pragma once

#include <cstdint>

#define TILES inline __attribute__((always_inline))

namespace freedive {

constexpr int kTileHeight = 16, kTileBytes = 64;

// What a thread sets before it uses its registers: their shapes.
struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    constexpr void shape(int tile, int height, int width) {
        rows[tile] = std::uint8_t(height);
        row_bytes[tile] = std::uint16_t(width);
    }
};

// A thread's registers, from their configuration to their release.
class Tiles {
  public:
    TILES explicit Tiles(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
    TILES ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;

    // Numbers of registers are constants.
    TILES void zero(int to) { asm volatile("tilezero %%tmm%c0" ::"i"(to)); }
    TILES void load(int to, const void* from, std::int64_t stride) {  // rows lie `stride` bytes apart
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(to), "r"(from), "r"(stride) : "memory");
    }
    TILES void store(int from, void* to, std::int64_t stride) {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(from), "r"(to), "r"(stride) : "memory");
    }
    TILES void fetch(const void* at) { asm volatile("prefetchw (%0)" ::"r"(at)); }  // to be written

    // sum[m][n] += sum over k of a[m][k] * b[k / 4][4 * n + k % 4]: int8 to int32.
    TILES void dot(int sum, int a, int b) {
        asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
    }
    // Likewise of bfloat16, b[k / 2][2 * n + k % 2], to float.
    TILES void dot_bf16(int sum, int a, int b) {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
    }
};

}  // namespace freedive
