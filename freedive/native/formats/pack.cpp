// GGUF blocks -> packed panels, and one packed row -> floats.
#include <cstring>

#include "format.h"

namespace freedive {
namespace {

std::uint16_t read16(const std::uint8_t* p) {
    std::uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}
void write16(std::uint8_t* p, std::uint16_t v) { std::memcpy(p, &v, 2); }

// Group g of one row as the file has it: 32 codes and its scales, undecoded.
struct Group {
    std::uint8_t codes[kGroup];
    std::uint16_t scale = 0, minimum = 0;  // half floats; for K-quants those of the super-block
    std::uint8_t sub[2] = {0, 0};          // SuperMin: 6-bit scale and minimum; SuperHalves: two signed scales
};

// 6-bit scale and minimum of sub-block j in the 12 bytes of a K-quant block (ggml-quants: get_scale_min_k4).
void scale_min_k4(int j, const std::uint8_t* s, std::uint8_t out[2]) {
    if (j < 4) {
        out[0] = s[j] & 63;
        out[1] = s[j + 4] & 63;
    } else {
        out[0] = std::uint8_t((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4));
        out[1] = std::uint8_t((s[j + 4] >> 4) | ((s[j] >> 6) << 4));
    }
}

// The half nibbles of 16 bytes: low ones are inputs 0..15, high ones 16..31.
void split_nibbles(const std::uint8_t* q, std::uint8_t* codes) {
    for (int i = 0; i < 16; i++) {
        codes[i] = q[i] & 15;
        codes[i + 16] = q[i] >> 4;
    }
}
void add_fifth_bits(const std::uint8_t* bits, std::uint8_t* codes) {
    std::uint32_t h;
    std::memcpy(&h, bits, 4);
    for (int i = 0; i < kGroup; i++) codes[i] |= ((h >> i) & 1) << 4;
}

template <Format F>
constexpr std::size_t block_bytes() {
    switch (F) {
        case Format::Q8_0:
            return 34;
        case Format::Q4_0:
            return 18;
        case Format::Q4_1:
            return 20;
        case Format::Q5_0:
            return 22;
        case Format::Q5_1:
            return 24;
        case Format::Q4_K:
            return 144;
        case Format::Q5_K:
            return 176;
        default:
            return 210;
    }
}
template <Format F>
constexpr int groups_per_block() {
    return Quantised<F>::super_lines ? kSuperGroups : 1;
}

template <Format F>
void read_group(const std::uint8_t* row, int g, Group& out) {
    constexpr int per_block = groups_per_block<F>();
    const std::uint8_t* b = row + (g / per_block) * block_bytes<F>();
    const int j = g % per_block;  // sub-block of a K-quant block
    if constexpr (F == Format::Q8_0) {
        out.scale = read16(b);
        for (int i = 0; i < kGroup; i++) out.codes[i] = b[2 + i] ^ 0x80;
    } else if constexpr (F == Format::Q4_0) {
        out.scale = read16(b);
        split_nibbles(b + 2, out.codes);
    } else if constexpr (F == Format::Q4_1) {
        out.scale = read16(b);
        out.minimum = read16(b + 2);
        split_nibbles(b + 4, out.codes);
    } else if constexpr (F == Format::Q5_0) {
        out.scale = read16(b);
        split_nibbles(b + 6, out.codes);
        add_fifth_bits(b + 2, out.codes);
    } else if constexpr (F == Format::Q5_1) {
        out.scale = read16(b);
        out.minimum = read16(b + 2);
        split_nibbles(b + 8, out.codes);
        add_fifth_bits(b + 4, out.codes);
    } else if constexpr (F == Format::Q4_K || F == Format::Q5_K) {
        out.scale = read16(b);
        out.minimum = read16(b + 2) ^ 0x8000;  // the file subtracts minima, a panel adds them
        scale_min_k4(j, b + 4, out.sub);
        const std::uint8_t* q = b + (F == Format::Q4_K ? 16 : 48) + (j / 2) * 32;
        for (int i = 0; i < kGroup; i++) {
            out.codes[i] = (q[i] >> (4 * (j % 2))) & 15;
            if constexpr (F == Format::Q5_K) out.codes[i] |= ((b[16 + i] >> j) & 1) << 4;
        }
    } else {  // Q6_K: 128 low nibble bytes, 64 high bit bytes, 16 signed scales, one half float
        out.scale = read16(b + 208);
        const int half = j / 4, part = j % 4;
        const std::uint8_t* low = b + half * 64 + (part % 2) * 32;
        const std::uint8_t* high = b + 128 + half * 32;
        for (int i = 0; i < kGroup; i++)
            out.codes[i] = std::uint8_t(((low[i] >> (4 * (part / 2))) & 15) | (((high[i] >> (2 * part)) & 3) << 4));
        out.sub[0] = b[192 + 2 * j];
        out.sub[1] = b[192 + 2 * j + 1];
    }
}

template <Format F>
void write_scales(const Group& g, std::uint8_t* group, int row) {
    using T = Quantised<F>;
    if constexpr (T::super_lines == 0) {
        write16(group + 2 * row, g.scale);
        if constexpr (T::scales == Scales::HalfMin) write16(group + kLine + 2 * row, g.minimum);
    } else {
        group[row] = g.sub[0];
        group[kPanelRows + row] = g.sub[1];
    }
}
template <Format F>
void write_super(const Group& g, std::uint8_t* super, int row) {
    write16(super + 2 * row, g.scale);
    if constexpr (Quantised<F>::scales == Scales::SuperMin) write16(super + kLine + 2 * row, g.minimum);
}

// Where input i of a group has its bits: quad i / 4, byte within the line 4 * (row in tile) + i % 4.
template <int Bits>
void write_codes(const std::uint8_t* codes, std::uint8_t* tile, int row) {
    for (int i = 0; i < kGroup; i++) {
        const int quad = i / 4, byte = 4 * row + i % 4;
        const std::uint8_t c = codes[i];
        if constexpr (Bits == 8) {
            tile[quad * kLine + byte] = c;
        } else {
            tile[(quad / 2) * kLine + byte] |= (c & 15) << (4 * (quad % 2));
            if constexpr (Bits == 5) tile[4 * kLine + byte] |= (c >> 4) << quad;
            if constexpr (Bits == 6) tile[(4 + quad / 4) * kLine + byte] |= (c >> 4) << (2 * (quad % 4));
        }
    }
}
template <int Bits>
int read_code(const std::uint8_t* tile, int row, int i) {
    const int quad = i / 4, byte = 4 * row + i % 4;
    if constexpr (Bits == 8) return tile[quad * kLine + byte];
    int c = (tile[(quad / 2) * kLine + byte] >> (4 * (quad % 2))) & 15;
    if constexpr (Bits == 5) c |= ((tile[4 * kLine + byte] >> quad) & 1) << 4;
    if constexpr (Bits == 6) c |= ((tile[(4 + quad / 4) * kLine + byte] >> (2 * (quad % 4))) & 3) << 4;
    return c;
}

template <Format F>
void pack_row(const std::uint8_t* src_row, int k, int row, std::uint8_t* panel) {
    using T = Quantised<F>;
    Group group;
    for (int g = 0; g < k / kGroup; g++) {
        read_group<F>(src_row, g, group);
        std::uint8_t* at = panel + T::group_offset(g);
        if (T::super_lines && g % kSuperGroups == 0) write_super<F>(group, at - T::super_lines * kLine, row);
        write_scales<F>(group, at, row);
        std::uint8_t* tile = at + kLine * (T::scale_lines + (row / kTileRows) * T::tile_lines);
        write_codes<T::bits>(group.codes, tile, row % kTileRows);
    }
}

template <Format F>
void unpack_group(const std::uint8_t* panel, int g, int row, float* out) {
    using T = Quantised<F>;
    const std::uint8_t* at = panel + T::group_offset(g);
    float scale[2], minimum = 0;
    if constexpr (T::super_lines == 0) {
        scale[0] = scale[1] = half_to_float(read16(at + 2 * row));
        if constexpr (T::scales == Scales::HalfMin) minimum = half_to_float(read16(at + kLine + 2 * row));
    } else {
        const std::uint8_t* super = panel + T::group_offset(g - g % kSuperGroups) - T::super_lines * kLine;
        const float d = half_to_float(read16(super + 2 * row));
        if constexpr (T::scales == Scales::SuperMin) {
            scale[0] = scale[1] = d * at[row];
            minimum = half_to_float(read16(super + kLine + 2 * row)) * at[kPanelRows + row];
        } else {
            scale[0] = d * std::int8_t(at[row]);
            scale[1] = d * std::int8_t(at[kPanelRows + row]);
        }
    }
    const std::uint8_t* tile = at + kLine * (T::scale_lines + (row / kTileRows) * T::tile_lines);
    for (int i = 0; i < kGroup; i++)
        out[i] = scale[i / 16] * float(read_code<T::bits>(tile, row % kTileRows, i) - T::zero) + minimum;
}

void pack_float_row(Format f, const std::uint8_t* src_row, int k, int row, std::uint8_t* panel) {
    const int size = float_bytes(f);
    for (int i = 0; i < k; i++)
        std::memcpy(panel + (std::size_t(i) * kPanelRows + row) * size, src_row + i * size, size);
}
float read_float(Format f, const std::uint8_t* p) {
    if (f == Format::F16) return half_to_float(read16(p));
    std::uint32_t bits;
    if (f == Format::F32)
        std::memcpy(&bits, p, 4);
    else
        bits = std::uint32_t(read16(p)) << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}

}  // namespace

float half_to_float(std::uint16_t h) {
    const std::uint32_t sign = std::uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
    std::uint32_t bits;
    if (magnitude >= 0x7c00) {
        bits = sign | 0x7f800000 | ((magnitude & 0x3ff) << 13);
    } else if (magnitude >= 0x400) {
        bits = sign | ((magnitude + (112 << 10)) << 13);
    } else {  // zero or subnormal: magnitude * 2^-24 is exact
        const float v = float(magnitude) * 0x1p-24f;
        std::memcpy(&bits, &v, 4);
        bits |= sign;
    }
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

std::uint16_t float_to_half(float f) {
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const std::uint16_t sign = std::uint16_t((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;   // NaN
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds past the largest half
    if (bits >= 0x38800000) {                      // normal: round to nearest even
        bits += 0xfff + ((bits >> 13) & 1);
        return sign | std::uint16_t((bits - (112u << 23)) >> 13);
    }
    float magnitude;  // subnormal: adding 0.5 leaves the rounded value in the low bits
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | std::uint16_t(bits - 0x3f000000);
}

std::size_t source_row_bytes(Format f, int k) {
    if (!is_quantised(f)) return std::size_t(k) * float_bytes(f);
    return visit_quantised(f, [k]<Format F>() { return k / (kGroup * groups_per_block<F>()) * block_bytes<F>(); });
}

void pack_panels(Format f, const std::uint8_t* src, int rows, int k, int first, int last, std::uint8_t* dst) {
    const std::size_t bytes = panel_bytes(f, k), row_bytes = source_row_bytes(f, k);
    for (int p = first; p < last; p++) {
        std::uint8_t* panel = dst + bytes * p;
        std::memset(panel, 0, bytes);
        for (int row = 0; row < kPanelRows && p * kPanelRows + row < rows; row++) {
            const std::uint8_t* src_row = src + (std::size_t(p) * kPanelRows + row) * row_bytes;
            if (is_quantised(f))
                visit_quantised(f, [&]<Format F>() { pack_row<F>(src_row, k, row, panel); });
            else
                pack_float_row(f, src_row, k, row, panel);
        }
    }
}

void unpack_row(const Weight& w, int row, float* out) {
    const std::uint8_t* panel = w.panel(row / kPanelRows);
    row %= kPanelRows;
    if (is_quantised(w.format)) {
        visit_quantised(w.format, [&]<Format F>() {
            for (int g = 0; g < w.k / kGroup; g++) unpack_group<F>(panel, g, row, out + g * kGroup);
        });
    } else {
        const int size = float_bytes(w.format);
        for (int i = 0; i < w.k; i++) out[i] = read_float(w.format, panel + (std::size_t(i) * kPanelRows + row) * size);
    }
}

}  // namespace freedive
