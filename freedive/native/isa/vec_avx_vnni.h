// The avx_vnni level: that of AVX2 with the instruction that adds four products to a 32-bit sum.
#include <immintrin.h>

#include <cstdint>

#include "sums256.h"
#define LANES inline __attribute__((always_inline))

namespace freedive::avx_vnni {
#include "vec256.inl"

// Both halves of the activations of up to kRowsAtOnce rows are multiplied at once.
constexpr int kRowsAtOnce = 3, kLinearRows = 6;

// Written in assembly so that GCC 12 keeps the order of products: its own order spills accumulators. So only the
// assembler has to know the instruction.
LANES void add_dot(__m256i& acc, __m256i codes, __m256i a) {
    asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(codes), "x"(a));
}
// acc[i] += sum over j < 4 of codes[4 * i + j] * a[j]. `a` contains four int8.
template <int Bits>
LANES I i_dot(I acc, C codes, std::int32_t a) {
    const __m256i x = _mm256_set1_epi32(a);
    add_dot(acc.a, codes.a, x);
    add_dot(acc.b, codes.b, x);
    return acc;
}
}  // namespace freedive::avx_vnni
