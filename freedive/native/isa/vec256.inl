// Vectors of 16 lanes in two registers, with AVX2, FMA and F16C. Levels that have no wider registers include this file
// in their namespaces.

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};
struct C {
    __m256i a, b;
};
constexpr int kFloatRows = 2, kAttendRows = 4, kAttendColumns = 1;
constexpr int kTileVectors = 1;  // vectors in a row of a float tile
// The prefetch distance in a panel that is read from memory, and the locality argument of __builtin_prefetch.
constexpr int kPrefetchBytes = 6144, kPrefetchLocality = 2;

LANES F f_set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
LANES F f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LANES void f_store(float* p, F v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
LANES F f_load_half(const std::uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
}
LANES void f_store_half(std::uint16_t* p, F v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v.a, 0));
    _mm_storeu_si128((__m128i*)p + 1, _mm256_cvtps_ph(v.b, 0));
}
LANES __m256 bf16_half(const std::uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
LANES F f_load_bf16(const std::uint16_t* p) { return {bf16_half(p), bf16_half(p + 8)}; }
// e4m3 divided by 2^8. Sign extension copies the sign to bit 14, where it is cleared.
LANES F f_load_f8(const std::uint8_t* p) {
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)), 7);
    const __m256i halves = _mm256_and_si256(wide, _mm256_set1_epi16(short(0xbfff)));
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
LANES F f_add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LANES F f_sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LANES F f_mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LANES F f_div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LANES F f_sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
LANES F f_max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
LANES F f_min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LANES F f_abs(F x) {
    const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
LANES float f_max_lanes(F v) {
    const __m256 eight = _mm256_max_ps(v.a, v.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
LANES void f_add_lane_sums(const F (&x)[8], float* out) {
    __m256 eights[8];
    for (int i = 0; i < 8; i++) eights[i] = _mm256_add_ps(x[i].a, x[i].b);
    add_lane_sums(eights, out);
}
LANES F f_fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
LANES F f_round(F x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
LANES F f_keep_above(F x, F limit, F v) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.a, limit.a, _CMP_GE_OQ), v.a),
            _mm256_and_ps(_mm256_cmp_ps(x.b, limit.b, _CMP_GE_OQ), v.b)};
}
LANES F f_from_int(I v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
LANES I i_from_codes(const std::uint8_t* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
LANES I i_from_signed(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
LANES I i_from_float(F v) { return {_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)}; }
LANES __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
LANES F f_power_of_two(I n) { return {power_of_two(n.a), power_of_two(n.b)}; }
LANES I i_set(std::int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
LANES I i_load(const std::int32_t* p) {
    return {_mm256_load_si256((const __m256i*)p), _mm256_load_si256((const __m256i*)(p + 8))};
}
LANES void i_store(std::int32_t* p, I v) {
    _mm256_store_si256((__m256i*)p, v.a), _mm256_store_si256((__m256i*)(p + 8), v.b);
}
LANES I i_and(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
LANES I i_add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
template <int Bits>
LANES I i_shift_left(I v) {
    return {_mm256_slli_epi32(v.a, Bits), _mm256_slli_epi32(v.b, Bits)};
}
LANES I i_sub(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
template <int Bits>
LANES I i_shift_right(I v) {
    return {_mm256_srai_epi32(v.a, Bits), _mm256_srai_epi32(v.b, Bits)};
}
LANES std::int32_t i_sum_lanes(I v) {
    const __m256i eight = _mm256_add_epi32(v.a, v.b);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
LANES void i_store_bytes(std::int8_t* p, I v) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
LANES C c_load(const std::uint8_t* p) {
    return {_mm256_load_si256((const __m256i*)p), _mm256_load_si256((const __m256i*)p + 1)};
}
template <int Shift>
LANES __m256i c_shift(__m256i v) {
    return Shift < 0 ? _mm256_slli_epi16(v, -Shift) : _mm256_srli_epi16(v, Shift);
}
template <int Shift>
LANES C c_bits(C v, std::uint8_t mask) {
    const __m256i m = _mm256_set1_epi8(char(mask));
    return {_mm256_and_si256(c_shift<Shift>(v.a), m), _mm256_and_si256(c_shift<Shift>(v.b), m)};
}
LANES C c_or(C x, C y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
LANES C c_lookup(C v, const std::uint8_t (&table)[16]) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(t, v.a), _mm256_shuffle_epi8(t, v.b)};
}
