// A vectorised PlainCells for processors with AVX512_BF16 instructions; included in the namespace of a level.

alignas(64) constexpr std::uint16_t kInTurns[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

struct VectorCells {
    static LANES __mmask16 first(int count) { return count >= 16 ? 0xffff : count > 0 ? (1 << count) - 1 : 0; }
    // Rounds two vectors to bfloat16: the 16 elements of `low`, then the 16 of `high`. Inline assembly needs no
    // compiler flag for the instruction.
    static LANES __m512i rounded(__m512 high, __m512 low) {
        __m512i halves;
        asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(halves) : "v"(high), "v"(low));
        return halves;
    }
    static LANES void of_columns(const float* even, const float* odd, int count, std::uint32_t* cells) {
        const __mmask16 some = first(count);
        const __m512 low = _mm512_maskz_loadu_ps(even ? some : 0, even);
        const __m512i halves = rounded(_mm512_maskz_loadu_ps(odd ? some : 0, odd), low);
        _mm512_storeu_si512(cells, in_turns(halves));
    }
    // Interleaves the lower 16 elements with the upper 16.
    static LANES __m512i in_turns(__m512i halves) {
        return _mm512_permutexvar_epi16(_mm512_load_si512(kInTurns), halves);
    }
    static LANES void of_kept_columns(const std::uint16_t* even, const std::uint16_t* odd, int count,
                                      std::uint32_t* cells) {
        const __mmask16 some = first(count);
        const __m256i low = _mm256_maskz_loadu_epi16(even ? some : 0, even);
        const __m256i high = _mm256_maskz_loadu_epi16(odd ? some : 0, odd);
        _mm512_storeu_si512(cells, in_turns(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
    }
    static LANES void load(const std::uint16_t* kept, float* row) { f_store(row, f_load_bf16(kept)); }
    static LANES void of_inputs(const float* row, int count, std::uint32_t* cells) {
        const __m512 low = _mm512_maskz_loadu_ps(first(count), row);
        _mm512_storeu_si512(cells, rounded(_mm512_maskz_loadu_ps(first(count - 16), row + 16), low));
    }
    static LANES void transpose(const Square& from, std::uint32_t* to, std::ptrdiff_t stride) {
        __m512i x[16], y[16];
        for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(from[i]);
        // Interleaves the elements of rows i and i + 1.
        for (int i = 0; i < 16; i += 2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        // x[i + c] has rows i to i + 3 of columns c, 4 + c, 8 + c and 12 + c.
        for (int i = 0; i < 16; i += 4)
            for (int c = 0; c < 4; c += 2) {
                x[i + c] = _mm512_unpacklo_epi64(y[i + c / 2], y[i + 2 + c / 2]);
                x[i + c + 1] = _mm512_unpackhi_epi64(y[i + c / 2], y[i + 2 + c / 2]);
            }
        // Transposes the 4 x 4 blocks of 128 bits.
        for (int c = 0; c < 4; c++) {
            const __m512i low01 = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x44);
            const __m512i high01 = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xee);
            const __m512i low23 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x44);
            const __m512i high23 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xee);
            _mm512_storeu_si512(to + c * stride, _mm512_shuffle_i32x4(low01, low23, 0x88));
            _mm512_storeu_si512(to + (4 + c) * stride, _mm512_shuffle_i32x4(low01, low23, 0xdd));
            _mm512_storeu_si512(to + (8 + c) * stride, _mm512_shuffle_i32x4(high01, high23, 0x88));
            _mm512_storeu_si512(to + (12 + c) * stride, _mm512_shuffle_i32x4(high01, high23, 0xdd));
        }
    }
};
