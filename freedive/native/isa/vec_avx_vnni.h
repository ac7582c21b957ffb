// The avx_vnni level: that of AVX2 with the instruction that adds four products to a 32-bit sum.
#include <immintrin.h>

#include <cstdint>

#include "sums256.h"
#define LANES inline __attribute__((always_inline))

namespace freedive::avx_vnni {
#include "vec256.inl"

#ifndef LROWS
#define LROWS 4
#endif
constexpr int kLinearRows = LROWS;

// acc[i] += sum over j < 4 of codes[4 * i + j] * a[j]. `a` contains four int8.
template <int Bits>
LANES I i_dot(I acc, C codes, std::int32_t a) {
    const __m256i x = _mm256_set1_epi32(a);
    acc = {_mm256_dpbusd_avx_epi32(acc.a, codes.a, x), _mm256_dpbusd_avx_epi32(acc.b, codes.b, x)};
    asm volatile("" : "+x"(acc.a), "+x"(acc.b));
    return acc;
}
}  // namespace freedive::avx_vnni
