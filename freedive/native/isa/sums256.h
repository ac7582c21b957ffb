// Horizontal sums of eight registers of eight lanes; included by levels with AVX2.
#include <immintrin.h>

namespace freedive {
// out[i] += the sum of the lanes of x[i]. As in sum_lanes, each step adds the upper half of the lanes to the lower
// half.
static inline __attribute__((always_inline)) void add_lane_sums(const __m256 (&x)[8], float* out) {
    __m256 fours[4], twos[2];
    for (int i = 0; i < 4; i++) {
        const __m256 a = x[2 * i], b = x[2 * i + 1];
        fours[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    for (int i = 0; i < 2; i++) {
        const __m256 a = fours[2 * i], b = fours[2 * i + 1];
        twos[i] = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    }
    const __m256 ones =
        _mm256_add_ps(_mm256_shuffle_ps(twos[0], twos[1], 0x88), _mm256_shuffle_ps(twos[0], twos[1], 0xdd));
    const __m256 in_order = _mm256_permutevar8x32_ps(ones, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), in_order));
}
}  // namespace freedive
