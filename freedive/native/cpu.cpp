#include "cpu.h"

#include <stdexcept>
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace freedive {

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> levels = {&scalar_kernels};
#if defined(__x86_64__)
    const auto has = [](auto... feature) { return (feature && ...); };
    if (has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("f16c")))
        levels.push_back(&avx2_kernels);
    if (levels.size() == 2 && has(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                                  __builtin_cpu_supports("avx512vl"), __builtin_cpu_supports("avx512vnni")))
        levels.push_back(&avx512_kernels);
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) levels.push_back(&neon_kernels);
#endif
    return levels;
}

const Kernels& choose_kernels(const std::string& name) {
    std::string known;
    const auto levels = available_kernels();
    if (name.empty()) return *levels.back();
    for (const Kernels* level : levels) {
        if (name == level->name) return *level;
        known += (known.empty() ? "" : ", ") + std::string(level->name);
    }
    throw std::invalid_argument("instruction-set level '" + name + "' is not on this machine; it has: " + known);
}

}  // namespace freedive
