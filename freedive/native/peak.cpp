#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "cpu.h"
#include "isa/tiles.h"
#include "threads.h"

namespace freedive {
namespace {

constexpr int kPasses = 5;
constexpr int kIterations = 1 << 19;
constexpr int kChains = 12;  // independent accumulators, which hide the latency of the instruction

struct Unit {
    const char *type, *instruction;
    bool present;
    void (*run)();
    double operations;  // operations in one iteration; an addition and a multiplication are two
};

// Inline assembly needs no compiler flags for the instructions, and the accumulators stay in registers.
#define FREEDIVE_CHAINS(step) \
    step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

#if defined(__x86_64__)
#define FREEDIVE_VECTORS                                                                                       \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
        "xmm13", "xmm14", "xmm15"
#define FREEDIVE_REPEAT(step)                                                                      \
    asm volatile("vzeroall" ::: FREEDIVE_VECTORS);                                                 \
    for (int i = 0; i < kIterations; i++) asm volatile(FREEDIVE_CHAINS(step)::: FREEDIVE_VECTORS); \
    asm volatile("vzeroupper" ::: FREEDIVE_VECTORS);

#define FREEDIVE_DPBUSD(n) "vpdpbusd %%zmm15, %%zmm15, %%zmm" #n "\n\t"
#define FREEDIVE_DPBUSD256(n) "%{vex%} vpdpbusd %%ymm15, %%ymm15, %%ymm" #n "\n\t"
#define FREEDIVE_DPBF16(n) "vdpbf16ps %%zmm15, %%zmm15, %%zmm" #n "\n\t"
#define FREEDIVE_FMA512(n) "vfmadd231ps %%zmm15, %%zmm15, %%zmm" #n "\n\t"
#define FREEDIVE_FMA256(n) "vfmadd231ps %%ymm15, %%ymm15, %%ymm" #n "\n\t"
#define FREEDIVE_MADDUBS(n)                    \
    "vpmaddubsw %%ymm15, %%ymm15, %%ymm12\n\t" \
    "vpaddw %%ymm12, %%ymm" #n ", %%ymm" #n "\n\t"

void dpbusd() { FREEDIVE_REPEAT(FREEDIVE_DPBUSD) }
#if defined(FREEDIVE_AVX_VNNI)
void dpbusd256() { FREEDIVE_REPEAT(FREEDIVE_DPBUSD256) }
#endif
void dpbf16() { FREEDIVE_REPEAT(FREEDIVE_DPBF16) }
void fma512() { FREEDIVE_REPEAT(FREEDIVE_FMA512) }
void fma256() { FREEDIVE_REPEAT(FREEDIVE_FMA256) }
void maddubs() { FREEDIVE_REPEAT(FREEDIVE_MADDUBS) }

constexpr int kTileIterations = kIterations / 16;
// Operations of four tile products for each element of a row. They are divided by 16 because tile kernels run only
// kTileIterations.
constexpr double kTile = 4.0 * 16 * 16 * 2 / 16;

TileConfig whole_tiles() {
    TileConfig config;
    for (int tile = 0; tile < 8; tile++) config.shape(tile, kTileHeight, kTileBytes);
    return config;
}

#define FREEDIVE_TILES(product)                                                                    \
    Tiles tiles(whole_tiles());                                                                    \
    for (int i = 0; i < kTileIterations; i++)                                                      \
        asm volatile(product " %tmm6, %tmm4, %tmm0\n\t" product " %tmm7, %tmm4, %tmm1\n\t" product \
                             " %tmm6, %tmm5, %tmm2\n\t" product " %tmm7, %tmm5, %tmm3");

void tdpbssd() { FREEDIVE_TILES("tdpbssd") }
void tdpbf16ps(){FREEDIVE_TILES("tdpbf16ps")}

std::vector<Unit> units() {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
    const bool tiles = may_use_tiles();
    return {
        {"int8", "tdpbssd", tiles && __builtin_cpu_supports("amx-int8"), tdpbssd, kTile * 64},
        {"int8", "vpdpbusd zmm", avx512 && __builtin_cpu_supports("avx512vnni"), dpbusd, kChains * 64.0 * 2},
#if defined(FREEDIVE_AVX_VNNI)
        {"int8", "vpdpbusd ymm", cpu_features().avx_vnni, dpbusd256, kChains * 32.0 * 2},
#endif
        {"int8", "vpmaddubsw ymm", avx2, maddubs, kChains * 32.0 * 2},
        {"bf16", "tdpbf16ps", tiles && __builtin_cpu_supports("amx-bf16"), tdpbf16ps, kTile * 32},
        {"bf16", "vdpbf16ps zmm", avx512 && __builtin_cpu_supports("avx512bf16"), dpbf16, kChains * 32.0 * 2},
        {"fp32", "vfmadd zmm", avx512, fma512, kChains * 16.0 * 2},
        {"fp32", "vfmadd ymm", avx2, fma256, kChains * 8.0 * 2},
    };
}
#elif defined(__aarch64__)
#define FREEDIVE_FMLA(n) "fmla v" #n ".4s, v15.4s, v15.4s\n\t"

void fmla() {
    for (int i = 0; i < kIterations; i++)
        asm volatile(FREEDIVE_CHAINS(FREEDIVE_FMLA)::
                         : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v15");
}

std::vector<Unit> units() { return {{"fp32", "fmla", true, fmla, kChains * 4.0 * 2}}; }
#else
std::vector<Unit> units() { return {}; }
#endif

}  // namespace

std::vector<std::tuple<std::string, std::string, double>> compute_peaks(int num_threads) {
    std::vector<std::tuple<std::string, std::string, double>> peaks;
    Team team(num_threads);
    for (const Unit& unit : units()) {
        if (!unit.present) continue;
        double best = 0;
        for (int pass = 0; pass < kPasses; pass++) {
            const auto start = std::chrono::steady_clock::now();
            team.run([&](int) { unit.run(); });
            const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
            best = std::max(best, unit.operations * kIterations * num_threads / seconds.count());
        }
        peaks.emplace_back(unit.type, unit.instruction, best);
    }
    return peaks;
}

}  // namespace freedive
