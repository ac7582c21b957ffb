// Reads groups of 32 codes and their scales from the blocks of a source row. GGUF files have the blocks of ggml. Blocks
// of freedive's own formats (checkpoint/block_formats.py) are [half-float scale][zero point, one byte][codes].
#pragma once

#include <cstring>

#include "format.h"

namespace freedive {

inline std::uint16_t read16(const std::uint8_t* p) {
    std::uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}

// One group of a row: its 32 codes and its scales, as stored in the file.
struct Group {
    std::uint8_t codes[kGroup];
    std::uint16_t scale = 0, minimum = 0;  // those of the span: half floats; the scale may be bfloat16
    float wide_scale = 0;                  // that of the span in F8Halves
    std::uint8_t sub[2] = {0, 0};          // formats with super-scales: the group's own scales
};

// Bytes of a source block, which is a span of groups. Float formats: bytes of one element.
constexpr int kBlockBytes[kNumFormats] = {4,  2,   2,   132,            // F32, F16, BF16, F8G128
                                          34, 18,  20,  22,  24,        // Q8_0, Q4_0, Q4_1, Q5_0, Q5_1
                                          84, 110, 144, 176, 210,       // Q2_K to Q6_K
                                          18, 136, 17,  66,             // IQ4_NL, IQ4_XS, MXFP4, TQ2_0
                                          82, 114, 114, 146, 146, 148,  // IQ1S, IQ1M, IQ2, IQ3XXS, IQ3S, F4G16
                                          34, 66,  130, 19,  35,  67};  // freedive's own

// Splits 16 bytes into 32 codes of four bits. Low nibbles are inputs 0 to 15, high nibbles are inputs 16 to 31.
inline void split_nibbles(const std::uint8_t* q, std::uint8_t* codes) {
    for (int i = 0; i < 16; i++) {
        codes[i] = q[i] & 15;
        codes[i + 16] = q[i] >> 4;
    }
}
inline void add_fifth_bits(const std::uint8_t* bits, std::uint8_t* codes) {
    std::uint32_t h;
    std::memcpy(&h, bits, 4);
    for (int i = 0; i < kGroup; i++) codes[i] |= ((h >> i) & 1) << 4;
}
// Reads the 6-bit scale and minimum of group j from the 12 bytes of a Q4_K or Q5_K block (get_scale_min_k4 of ggml).
inline void scale_min_k4(int j, const std::uint8_t* s, std::uint8_t out[2]) {
    if (j < 4) {
        out[0] = s[j] & 63;
        out[1] = s[j + 4] & 63;
    } else {
        out[0] = std::uint8_t((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4));
        out[1] = std::uint8_t((s[j + 4] >> 4) | ((s[j] >> 6) << 4));
    }
}
// Reads the signed 6-bit scale of half group s from the 12 bytes of a Q3_K block.
inline std::uint8_t scale_q3(int s, const std::uint8_t* scales) {
    const int low = (scales[s % 8] >> (4 * (s / 8))) & 15, high = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
    return std::uint8_t((low | high << 4) - 32);
}
constexpr std::uint16_t kNegative = 0x8000;  // sign bit: in files minima of K-quants are subtracted, in panels added

// Reads 32 codes of `Width` bits in order, the first in the lowest bits. Eight codes at a time are spread to bytes:
// each step doubles their distances.
template <int Width>
void read_codes(const std::uint8_t* from, std::uint8_t* codes) {
    constexpr auto ones = [](int bits) { return (std::uint64_t(1) << bits) - 1; };
    for (int i = 0; i < kGroup; i += 8) {
        std::uint64_t v = 0;
        std::memcpy(&v, from + i / 8 * Width, Width);
        v = (v | v << (32 - 4 * Width)) & (ones(4 * Width) * 0x0000000100000001);
        v = (v | v << (16 - 2 * Width)) & (ones(2 * Width) * 0x0001000100010001);
        v = (v | v << (8 - Width)) & (ones(Width) * 0x0101010101010101);
        std::memcpy(codes + i, &v, 8);
    }
}
// Reads group j of one of freedive's own blocks of 256: two bytes of scales for each group, then the low bits of all
// codes, then their high bits.
template <class T>
void read_own_group(const std::uint8_t* b, int j, Group& out) {
    constexpr int group_bytes = kGroup / 8;
    std::memcpy(out.sub, b + 2 * j, 2);
    const std::uint8_t* codes = b + 16;
    read_codes<T::low_bits>(codes + group_bytes * T::low_bits * j, out.codes);
    if constexpr (T::high_bits > 0) {
        std::uint8_t high[kGroup];
        read_codes<T::high_bits>(codes + group_bytes * (T::low_bits * T::span + T::high_bits * j), high);
        for (int i = 0; i < kGroup; i++) out.codes[i] |= high[i] << T::low_bits;
    }
}

// Reads group j of block b.
template <Format F>
void read_group(const std::uint8_t* b, int j, Group& out) {
    if constexpr (Quantised<F>::super) {  // IQ1S to IQ3S
        if constexpr (Quantised<F>::minima) out.minimum = read16(b) ^ kNegative;
        read_own_group<Quantised<F>>(b + 2, j, out);
    } else if constexpr (F == Format::Q5_0 || F == Format::Q5_1) {
        constexpr int at = F == Format::Q5_0 ? 2 : 4;
        if (at == 4) out.minimum = read16(b + 2);
        split_nibbles(b + at + 4, out.codes);
        add_fifth_bits(b + at, out.codes);
    } else if constexpr (Quantised<F>::scales == Scales::HalfZero) {
        out.minimum = float_to_half(b[2]);
        split_nibbles(b + 3 + 16 * j, out.codes);
    } else if constexpr (F == Format::Q4_1) {
        out.minimum = read16(b + 2);
        split_nibbles(b + 4, out.codes);
    } else if constexpr (Quantised<F>::bits == 8) {
        for (int i = 0; i < kGroup; i++) out.codes[i] = b[2 + kGroup * j + i] ^ 0x80;
    } else {  // Q4_0, IQ4_NL, I4G64, I4G128
        split_nibbles(b + 2 + 16 * j, out.codes);
    }
    out.scale = read16(b);
}
// The scale is 2^(e - 128), not 2^(e - 127), because the values of the code table are doubled.
template <>
inline void read_group<Format::MXFP4>(const std::uint8_t* b, int, Group& out) {
    out.scale = b[0] == 255 ? 0x7fc0 : std::uint16_t(b[0] < 2 ? 0x20 << b[0] : (b[0] - 1) << 7);
    split_nibbles(b + 1, out.codes);
}
template <>
inline void read_group<Format::IQ4_XS>(const std::uint8_t* b, int j, Group& out) {
    out.scale = read16(b);
    const int low = (b[4 + j / 2] >> (4 * (j % 2))) & 15, high = (read16(b + 2) >> (2 * j)) & 3;
    out.sub[0] = out.sub[1] = std::uint8_t((low | high << 4) - 32);
    split_nibbles(b + 8 + 16 * j, out.codes);
}
template <>
inline void read_group<Format::Q2_K>(const std::uint8_t* b, int j, Group& out) {
    out.scale = read16(b + 80);
    out.minimum = read16(b + 82) ^ kNegative;
    for (int i = 0; i < kGroup; i++) out.codes[i] = (b[16 + j / 4 * 32 + i] >> (2 * (j % 4))) & 3;
    std::memcpy(out.sub, b + 2 * j, 2);
}
template <>
inline void read_group<Format::Q3_K>(const std::uint8_t* b, int j, Group& out) {
    out.scale = read16(b + 108);
    for (int i = 0; i < kGroup; i++)
        out.codes[i] = std::uint8_t(((b[32 + j / 4 * 32 + i] >> (2 * (j % 4))) & 3) | ((b[i] >> j) & 1) << 2);
    for (int half = 0; half < 2; half++) out.sub[half] = scale_q3(2 * j + half, b + 96);
}
template <>
inline void read_group<Format::Q4_K>(const std::uint8_t* b, int j, Group& out) {
    out.scale = read16(b);
    out.minimum = read16(b + 2) ^ kNegative;
    scale_min_k4(j, b + 4, out.sub);
    for (int i = 0; i < kGroup; i++) out.codes[i] = (b[16 + j / 2 * 32 + i] >> (4 * (j % 2))) & 15;
}
template <>
inline void read_group<Format::Q5_K>(const std::uint8_t* b, int j, Group& out) {
    out.scale = read16(b);
    out.minimum = read16(b + 2) ^ kNegative;
    scale_min_k4(j, b + 4, out.sub);
    for (int i = 0; i < kGroup; i++)
        out.codes[i] = std::uint8_t(((b[48 + j / 2 * 32 + i] >> (4 * (j % 2))) & 15) | ((b[16 + i] >> j) & 1) << 4);
}
template <>
inline void read_group<Format::Q6_K>(const std::uint8_t* b, int j, Group& out) {
    out.scale = read16(b + 208);
    const int half = j / 4, part = j % 4;
    const std::uint8_t *low = b + half * 64 + (part % 2) * 32, *high = b + 128 + half * 32;
    for (int i = 0; i < kGroup; i++)
        out.codes[i] = std::uint8_t(((low[i] >> (4 * (part / 2))) & 15) | (((high[i] >> (2 * part)) & 3) << 4));
    std::memcpy(out.sub, b + 192 + 2 * j, 2);
}

template <>
inline void read_group<Format::TQ2_0>(const std::uint8_t* b, int j, Group& out) {
    out.scale = read16(b + 64);
    for (int i = 0; i < kGroup; i++) out.codes[i] = (b[j / 4 * 32 + i] >> (2 * (j % 4))) & 3;
}
template <>
inline void read_group<Format::F4G16>(const std::uint8_t* b, int j, Group& out) {
    std::memcpy(&out.wide_scale, b, sizeof out.wide_scale);
    read_own_group<Quantised<Format::F4G16>>(b + sizeof out.wide_scale, j, out);
}

}  // namespace freedive
