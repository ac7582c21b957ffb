// The avx2 level: vectors of 16 lanes in two registers, with AVX2, FMA and F16C.
#include <immintrin.h>

#include <cstdint>

#include "sums256.h"
#define LANES inline __attribute__((always_inline))

namespace freedive::avx2 {
#include "vec256.inl"

constexpr int kLinearRows = 4;

// 16-bit accumulators, two for each lane of 32 bits: products of codes below 128 and four activations, which are
// broadcast to all lanes.
struct S {
    __m256i a, b;
};
LANES S s_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
LANES S s_dot(S acc, C codes, std::int32_t a) {
    const __m256i x = _mm256_set1_epi32(a);
    acc = {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(codes.a, x)),
           _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(codes.b, x))};
    asm volatile("" : "+x"(acc.a), "+x"(acc.b));  // keeps GCC from computing all products first, which spills registers
    return acc;
}
template <int Unit>
LANES I s_total(S v) {
    const __m256i unit = _mm256_set1_epi16(Unit);
    return {_mm256_madd_epi16(v.a, unit), _mm256_madd_epi16(v.b, unit)};
}
// Converts activations to 16-bit words: the even elements of all quads, then the odd ones. w_dot multiplies them by
// codes below 256.
constexpr int kOddWords = 16;
LANES void w_store(const std::int8_t* high, const std::int8_t* low, std::int16_t* out) {
    const __m256i h = _mm256_loadu_si256((const __m256i*)high), l = _mm256_loadu_si256((const __m256i*)low);
    const __m256i even = _mm256_add_epi16(_mm256_slli_epi16(h, 8), _mm256_srai_epi16(_mm256_slli_epi16(l, 8), 8));
    const __m256i odd = _mm256_add_epi16(_mm256_andnot_si256(_mm256_set1_epi16(255), h), _mm256_srai_epi16(l, 8));
    _mm256_store_si256((__m256i*)out, even);
    _mm256_store_si256((__m256i*)(out + kOddWords), odd);
}
struct W {
    C even, odd;
};
LANES W w_codes(C v) {
    const __m256i bytes = _mm256_set1_epi16(255);
    return {{_mm256_and_si256(v.a, bytes), _mm256_and_si256(v.b, bytes)},
            {_mm256_srli_epi16(v.a, 8), _mm256_srli_epi16(v.b, 8)}};
}
LANES I w_dot(I acc, const W& codes, std::int32_t even, std::int32_t odd) {
    const __m256i e = _mm256_set1_epi32(even), o = _mm256_set1_epi32(odd);
    acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(codes.even.a, e));
    acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(codes.even.b, e));
    acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(codes.odd.a, o));
    acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(codes.odd.b, o));
    asm volatile("" : "+x"(acc.a), "+x"(acc.b));  // as in s_dot
    return acc;
}
}  // namespace freedive::avx2
