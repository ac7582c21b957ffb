#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "threads.h"

namespace freedive {
namespace {

constexpr int kPasses = 5;
constexpr int kIterations = 1 << 19;
constexpr int kChains = 12;  // sums that do not wait for each other

struct Unit {
    const char *type, *instruction;
    bool present;
    void (*run)();
    double operations;  // of one iteration
};

// The compiler must believe that a sum is wanted after every step, in a register.
#define FREEDIVE_CHAINS(Vector, zero, step)                    \
    Vector sums[kChains];                                      \
    for (Vector & sum : sums) sum = zero;                      \
    for (int i = 0; i < kIterations; i++)                      \
        for (Vector & sum : sums) {                            \
            sum = step;                                        \
            asm volatile("" : FREEDIVE_IN_REGISTER(sum));      \
        }

#if defined(__x86_64__)
#define FREEDIVE_IN_REGISTER(x) "+v"(x)

[[gnu::target("avx2")]] void maddubs() {
    const __m256i ones = _mm256_set1_epi8(1), wide = _mm256_set1_epi16(1);
    FREEDIVE_CHAINS(__m256i, _mm256_setzero_si256(),
                    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, sum), wide)))
}
[[gnu::target("avx512f,avx512vnni")]] void dpbusd() {
    const __m512i ones = _mm512_set1_epi8(1);
    FREEDIVE_CHAINS(__m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32(sum, ones, ones))
}
[[gnu::target("avx512f,avx512bf16")]] void dpbf16() {
    const __m512bh zeros = __m512bh(_mm512_setzero_si512());
    FREEDIVE_CHAINS(__m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(sum, zeros, zeros))
}
[[gnu::target("avx512f")]] void fma512() {
    const __m512 ones = _mm512_set1_ps(1);
    FREEDIVE_CHAINS(__m512, _mm512_setzero_ps(), _mm512_fmadd_ps(ones, ones, sum))
}
[[gnu::target("avx2,fma")]] void fma256() {
    const __m256 ones = _mm256_set1_ps(1);
    FREEDIVE_CHAINS(__m256, _mm256_setzero_ps(), _mm256_fmadd_ps(ones, ones, sum))
}

constexpr double kTile = 4.0 * 16 * 16;  // of four products of tiles: sums

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Written as assembly, since compilers have lost the configuration around intrinsics.
#define FREEDIVE_TILES(product)                                                                       \
    const TileConfig config;                                                                          \
    asm volatile("ldtilecfg %0" ::"m"(config));                                                       \
    asm volatile("tilezero %tmm4\n\ttilezero %tmm5\n\ttilezero %tmm6\n\ttilezero %tmm7");             \
    asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");             \
    for (int i = 0; i < kIterations / 16; i++)                                                        \
        asm volatile(product " %tmm6, %tmm4, %tmm0\n\t" product " %tmm7, %tmm4, %tmm1\n\t" product    \
                             " %tmm6, %tmm5, %tmm2\n\t" product " %tmm7, %tmm5, %tmm3");              \
    asm volatile("tilerelease");

void tdpbssd() { FREEDIVE_TILES("tdpbssd") }
void tdpbf16ps() { FREEDIVE_TILES("tdpbf16ps") }

// Linux gives a process tiles when it asks for them.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

std::vector<Unit> units() {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
    const bool tiles = __builtin_cpu_supports("amx-tile") && may_use_tiles();
    return {
        {"int8", "tdpbssd", tiles && __builtin_cpu_supports("amx-int8"), tdpbssd, kTile * 64 * 2 / 16},
        {"int8", "vpdpbusd zmm", avx512 && __builtin_cpu_supports("avx512vnni"), dpbusd, kChains * 64.0 * 2},
        {"int8", "vpmaddubsw ymm", avx2, maddubs, kChains * 32.0 * 2},
        {"bf16", "tdpbf16ps", tiles && __builtin_cpu_supports("amx-bf16"), tdpbf16ps, kTile * 32 * 2 / 16},
        {"bf16", "vdpbf16ps zmm", avx512 && __builtin_cpu_supports("avx512bf16"), dpbf16, kChains * 32.0 * 2},
        {"fp32", "vfmadd zmm", avx512, fma512, kChains * 16.0 * 2},
        {"fp32", "vfmadd ymm", avx2, fma256, kChains * 8.0 * 2},
    };
}
#elif defined(__aarch64__)
#define FREEDIVE_IN_REGISTER(x) "+w"(x)

void fmla() {
    const float32x4_t ones = vdupq_n_f32(1);
    FREEDIVE_CHAINS(float32x4_t, vdupq_n_f32(0), vfmaq_f32(sum, ones, ones))
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
