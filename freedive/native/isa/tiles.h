// The eight AMX tile registers, each of up to 16 rows of 64 bytes. Inline assembly needs no compiler flags and declares
// that it reads and writes memory. The intrinsics of g++ 12 do not declare that, so it moves stores across them.
#pragma once

#include <cstdint>

#define TILES inline __attribute__((always_inline))

namespace freedive {

constexpr int kTileHeight = 16, kTileBytes = 64;

// The shapes of the registers. A thread must load them before it uses the registers.
struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    constexpr void shape(int tile, int height, int width) {
        rows[tile] = std::uint8_t(height);
        row_bytes[tile] = std::uint16_t(width);
    }
};

// The tile registers of the current thread. The constructor configures them and the destructor releases them.
class Tiles {
  public:
    TILES explicit Tiles(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
    TILES ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;

    // Register numbers must be compile-time constants.
    TILES void zero(int to) { asm volatile("tilezero %%tmm%c0" ::"i"(to)); }
    // Rows in memory are `stride` bytes apart.
    TILES void load(int to, const void* from, std::int64_t stride) {
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(to), "r"(from), "r"(stride) : "memory");
    }
    TILES void store(int from, void* to, std::int64_t stride) {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(from), "r"(to), "r"(stride) : "memory");
    }
    // Prefetches a cache line for writing.
    TILES void fetch(const void* at) { asm volatile("prefetchw (%0)" ::"r"(at)); }

    // sum[m][n] += sum over k of a[m][k] * b[k / 4][4 * n + k % 4]. Factors are int8, sums int32.
    TILES void dot(int sum, int a, int b) {
        asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
    }
    // sum[m][n] += sum over k of a[m][k] * b[k / 2][2 * n + k % 2]. Factors are bfloat16, sums float.
    TILES void dot_bf16(int sum, int a, int b) {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
    }
};

}  // namespace freedive
