// Vectors of 16 lanes in one register, with AVX512 F, BW, VL and VNNI.
#include <immintrin.h>

#include <cstdint>

#include "sums256.h"
#define LANES inline __attribute__((always_inline))

namespace freedive::avx512 {
using F = __m512;   // 16 floats
using I = __m512i;  // 16 int32
using C = __m512i;  // 64 codes
// Both halves of the activations of up to kRowsAtOnce rows are multiplied at once.
constexpr int kRowsAtOnce = 2, kLinearRows = 4, kFloatRows = 4, kAttendRows = 8, kAttendColumns = 2;
constexpr int kTileVectors = 2;  // vectors in a row of a float tile
// The prefetch distance in a panel that is read from memory, and the locality argument of __builtin_prefetch.
constexpr int kPrefetchBytes = 4096, kPrefetchLocality = 2;

LANES F f_set(float v) { return _mm512_set1_ps(v); }
LANES F f_load(const float* p) { return _mm512_loadu_ps(p); }
LANES void f_store(float* p, F v) { _mm512_storeu_ps(p, v); }
LANES F f_load_half(const std::uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
LANES void f_store_half(std::uint16_t* p, F v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, 0)); }
LANES F f_load_bf16(const std::uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
// e4m3 divided by 2^8. Sign extension copies the sign to bit 14, where it is cleared.
LANES F f_load_f8(const std::uint8_t* p) {
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16(short(0xbfff))));
}
LANES F f_add(F a, F b) { return _mm512_add_ps(a, b); }
LANES F f_sub(F a, F b) { return _mm512_sub_ps(a, b); }
LANES F f_mul(F a, F b) { return _mm512_mul_ps(a, b); }
LANES F f_div(F a, F b) { return _mm512_div_ps(a, b); }
LANES F f_sqrt(F a) { return _mm512_sqrt_ps(a); }
LANES F f_max(F a, F b) { return _mm512_max_ps(a, b); }
LANES F f_min(F a, F b) { return _mm512_min_ps(a, b); }
LANES F f_abs(F a) { return _mm512_abs_ps(a); }
LANES float f_max_lanes(F v) { return _mm512_reduce_max_ps(v); }
LANES void f_add_lane_sums(const F (&x)[8], float* out) {
    __m256 eights[8];
    for (int i = 0; i < 8; i++) {
        const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x[i]), 1));
        eights[i] = _mm256_add_ps(_mm512_castps512_ps256(x[i]), upper);
    }
    add_lane_sums(eights, out);
}
LANES F f_fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
LANES F f_round(F a) { return _mm512_roundscale_ps(a, 0); }
LANES F f_keep_above(F x, F limit, F v) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), v); }
LANES F f_from_int(I v) { return _mm512_cvtepi32_ps(v); }
LANES I i_from_codes(const std::uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
LANES I i_from_signed(const std::int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
LANES I i_from_float(F v) { return _mm512_cvtps_epi32(v); }  // to nearest even
LANES F f_power_of_two(I n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
LANES I i_set(std::int32_t v) { return _mm512_set1_epi32(v); }
LANES I i_and(I a, I b) { return _mm512_and_si512(a, b); }
LANES I i_add(I a, I b) { return _mm512_add_epi32(a, b); }
template <int Bits>
LANES I i_shift_left(I v) {
    return _mm512_slli_epi32(v, Bits);
}
LANES I i_sub(I a, I b) { return _mm512_sub_epi32(a, b); }
template <int Bits>
LANES I i_shift_right(I v) {
    return _mm512_srai_epi32(v, Bits);
}
LANES std::int32_t i_sum_lanes(I v) { return _mm512_reduce_add_epi32(v); }
LANES void i_store_bytes(std::int8_t* p, I v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(v)); }
LANES C c_load(const std::uint8_t* p) { return _mm512_load_si512(p); }
template <int Shift>
LANES C c_bits(C v, std::uint8_t mask) {
    const C shifted = Shift < 0 ? _mm512_slli_epi16(v, -Shift) : _mm512_srli_epi16(v, Shift);
    return _mm512_and_si512(shifted, _mm512_set1_epi8(char(mask)));
}
LANES C c_or(C a, C b) { return _mm512_or_si512(a, b); }
LANES C c_lookup(C v, const std::uint8_t (&table)[16]) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), v);
}
// acc[i] += sum over j < 4 of codes[4 * i + j] * a[j]. `a` contains four int8.
template <int Bits>
LANES I i_dot(I acc, C codes, std::int32_t a) {
    return _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(a));
}
}  // namespace freedive::avx512
