#include "cpu.h"

#include <cstring>
#include <stdexcept>
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace freedive {

#if defined(__x86_64__)
// Tiles need a processor that has them and a system that saves them; Linux grants them to a process on request.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return __builtin_cpu_supports("amx-tile") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

namespace {

// Whether tiles compute a small product correctly.
bool tiles_agree() {
    constexpr int rows = 20, k = 3 * kGroup;
    alignas(64) std::uint8_t panel[Quantised<Format::Q8_0>::panel_bytes(k)];
    for (std::size_t i = 0; i < sizeof panel; i++) panel[i] = std::uint8_t(i * 89) & 0xbf;  // a finite scale, too
    float numbers[rows * k], out[2][rows * kPanelRows];
    for (int i = 0; i < rows * k; i++) numbers[i] = float(i * 37 % 101 - 50);
    QuantisedGroup codes[rows][k / kGroup];
    const void* x[rows];
    for (int r = 0; r < rows; r++) {
        avx512_kernels.quantise(numbers + r * k, k, 0, codes[r]);
        x[r] = codes[r];
    }
    amx_kernels().linear[int(Format::Q8_0)](panel, k, x, rows, out[0]);
    avx512_kernels.linear[int(Format::Q8_0)](panel, k, x, rows, out[1]);
    return std::memcmp(out[0], out[1], sizeof out[0]) == 0;
}

// Compilers differ in the name of this feature.
bool has_avx_vnni() {
    constexpr unsigned kLeaf = 7, kSubleaf = 1, kBit = 1 << 4;
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(kLeaf, kSubleaf, &eax, &ebx, &ecx, &edx) && eax & kBit;
}

bool has_amx() {
    static const bool has = __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
                            __builtin_cpu_supports("avx512bf16") && may_use_tiles() && tiles_agree();
    return has;
}

}  // namespace
#endif

CpuFeatures cpu_features() {
    CpuFeatures has;
#if defined(__x86_64__)
    const auto all = [](auto... feature) { return (feature && ...); };
    has.avx2 = all(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("f16c"));
    has.avx_vnni = has.avx2 && has_avx_vnni();  // the system saves its registers if it saves those of AVX2
    has.avx512 = has.avx2 && all(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                                 __builtin_cpu_supports("avx512vl"), __builtin_cpu_supports("avx512vnni"));
    has.amx = has.avx512 && has_amx();
#elif defined(__aarch64__) && defined(__linux__)
    has.asimddp = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
    return has;
}

std::vector<const Kernels*> kernels_for(const CpuFeatures& has) {
    std::vector<const Kernels*> levels = {&scalar_kernels};
#if defined(__x86_64__)
    if (has.avx2) levels.push_back(&avx2_kernels);
#if defined(FREEDIVE_AVX_VNNI)
    if (has.avx_vnni) levels.push_back(&avx_vnni_kernels);
#endif
    if (has.avx512) levels.insert(levels.end(), {&emulated_amx_kernels(), &avx512_kernels});
    if (has.amx) levels.push_back(&amx_kernels());
#elif defined(__aarch64__) && defined(__linux__)
    if (has.asimddp) levels.push_back(&neon_kernels);
#endif
    return levels;
}

std::vector<const Kernels*> available_kernels() { return kernels_for(cpu_features()); }

const Kernels& choose_kernels(const std::string& name) {
    std::string known;
    const auto levels = available_kernels();
    if (name.empty()) return *levels.back();
    for (const Kernels* level : levels) {
        if (name == level->name) return *level;
        known += (known.empty() ? "" : ", ") + std::string(level->name);
    }
    throw std::invalid_argument("Instruction-set level '" + name + "' is not on this machine; it has: " + known);
}

}  // namespace freedive
