// Packs source rows to panels, and unpacks single rows to floats.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../checks.h"
#include "blocks.h"

namespace freedive {
namespace {

void write16(std::uint8_t* p, std::uint16_t v) { std::memcpy(p, &v, 2); }

template <class T>
T read(const std::uint8_t* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
float bf16_to_float(std::uint16_t v) {
    const std::uint32_t bits = std::uint32_t(v) << 16;
    return read<float>((const std::uint8_t*)&bits);
}
// The bits of e4m3 are shifted to those of a half float, whose exponent bias is larger by 8.
constexpr float kF8Unit = 256;
float f8_to_float(std::uint8_t v) { return half_to_float(std::uint16_t((v & 0x80) << 8 | (v & 0x7f) << 7)) * kF8Unit; }

// In NaN and infinities all exponent bits are set. e4m3 has no infinities; its NaN has all bits but the sign set.
constexpr bool finite32(std::uint32_t v) { return (v & 0x7f800000) != 0x7f800000; }
constexpr bool finite_half(std::uint16_t v) { return (v & 0x7c00) != 0x7c00; }
constexpr bool finite_bf16(std::uint16_t v) { return (v & 0x7f80) != 0x7f80; }
constexpr bool finite_f8(std::uint8_t v) { return (v & 0x7f) != 0x7f; }
// Smaller scales make no infinite weight, since no code is above 2^9, nor times an e4m3 scale above 2^12.
constexpr float kSafeScale = 0x1p100f;

// The line of a bit plane that has a quad, and the position of the quad's bits in each byte of the line.
template <int Width>
constexpr int plane_line(int quad) {
    return quad / (8 / Width);
}
template <int Width>
constexpr int plane_shift(int quad) {
    return Width * (quad % (8 / Width));
}

// Writes the codes of one row of a tile. Input i is byte 4 * row + i % 4 of quad i / 4.
template <class T>
void write_codes(const std::uint8_t* codes, std::uint8_t* tile, int row) {
    for (int i = 0; i < kGroup; i++) {
        const int quad = i / 4, byte = 4 * row + i % 4, low = codes[i] & ((1 << T::low_bits) - 1);
        tile[plane_line<T::low_bits>(quad) * kLine + byte] |= low << plane_shift<T::low_bits>(quad);
        if constexpr (T::high_bits > 0)
            tile[(T::low_bits + plane_line<T::high_bits>(quad)) * kLine + byte] |= (codes[i] >> T::low_bits)
                                                                                   << plane_shift<T::high_bits>(quad);
    }
}
template <int Width>
int read_plane(const std::uint8_t* lines, int quad, int byte) {
    return (lines[plane_line<Width>(quad) * kLine + byte] >> plane_shift<Width>(quad)) & ((1 << Width) - 1);
}
template <class T>
int read_code(const std::uint8_t* tile, int row, int i) {
    const int quad = i / 4, byte = 4 * row + i % 4;
    int c = read_plane<T::low_bits>(tile, quad, byte);
    if constexpr (T::high_bits > 0)
        c |= read_plane<T::high_bits>(tile + T::low_bits * kLine, quad, byte) << T::low_bits;
    if constexpr (T::code_bits != T::bits) c = T::table[c];
    return c;
}

// The scales and minima of the two half groups of one row.
struct RowScales {
    float scale[2], minimum[2] = {0, 0};
};
template <class T>
RowScales read_scales(const std::uint8_t* span, const std::uint8_t* group, int row) {
    const std::uint8_t a = group[row], b = group[kPanelRows + row];
    if constexpr (T::scales == Scales::F8Halves) {
        const float d = read<float>(span + sizeof(float) * row) * (T::unit / kF8Unit);
        return {{d * f8_to_float(a), d * f8_to_float(b)}};
    }
    const std::uint16_t first = read16(span + 2 * row), second = T::minima ? read16(span + kLine + 2 * row) : 0;
    const float d = (T::scales == Scales::Bf16 ? bf16_to_float(first) : half_to_float(first)) * T::unit;
    const float m = half_to_float(second) * T::unit;
    if constexpr (T::scales == Scales::SuperMin) return {{d * a, d * a}, {m * b, m * b}};
    if constexpr (T::scales == Scales::SuperHalves) return {{d * std::int8_t(a), d * std::int8_t(b)}};
    if constexpr (T::scales == Scales::SuperHalvesMin)
        return {{d * (a & 15), d * (b & 15)}, {m * (a >> 4), m * (b >> 4)}};
    const float minimum = T::scales == Scales::HalfZero ? -(d * m) : m;
    return {{d, d}, {minimum, minimum}};
}

template <Format F>
void unpack_group(const std::uint8_t* panel, int g, int row, float* out) {
    using T = Quantised<F>;
    const std::uint8_t* at = panel + T::group_offset(g);
    const std::uint8_t* span = panel + T::group_offset(g - g % T::span) - T::span_lines * kLine;
    const RowScales scales = read_scales<T>(span, at, row);
    const std::uint8_t* tile = at + kLine * (T::group_lines + (row / kTileRows) * T::tile_lines);
    for (int i = 0; i < kGroup; i++)
        out[i] =
            scales.scale[i / 16] * float(read_code<T>(tile, row % kTileRows, i) - T::zero) + scales.minimum[i / 16];
}

// Whether no weight of a packed group is infinite. Only groups with huge scales need the check.
template <Format F>
[[gnu::noinline, gnu::cold]] bool finite_group(const std::uint8_t* panel, int g, int row) {
    float weights[kGroup];
    unpack_group<F>(panel, g, row, weights);
    return std::all_of(weights, weights + kGroup, [](float weight) { return std::isfinite(weight); });
}

template <Format F>
bool pack_row(const std::uint8_t* src_row, int k, int row, std::uint8_t* panel) {
    using T = Quantised<F>;
    bool finite = true;
    Group group;
    for (int g = 0; g < k / kGroup; g++) {
        read_group<F>(src_row + g / T::span * kBlockBytes[int(F)], g % T::span, group);
        std::uint8_t* at = panel + T::group_offset(g);
        if (g % T::span == 0) {
            std::uint8_t* span = at - T::span_lines * kLine;
            if constexpr (T::scales == Scales::F8Halves) {
                std::memcpy(span + sizeof(float) * row, &group.wide_scale, sizeof(float));
                finite &= finite32(read<std::uint32_t>((const std::uint8_t*)&group.wide_scale));
            } else {
                write16(span + 2 * row, group.scale);
                finite &= T::scales == Scales::Bf16 ? finite_bf16(group.scale) : finite_half(group.scale);
            }
            if constexpr (T::minima) write16(span + kLine + 2 * row, group.minimum);
            finite &= finite_half(group.minimum);
        }
        if constexpr (T::super) {
            at[row] = group.sub[0];
            at[kPanelRows + row] = group.sub[1];
        }
        if constexpr (T::scales == Scales::F8Halves) finite &= finite_f8(group.sub[0]) && finite_f8(group.sub[1]);
        std::uint8_t* tile = at + kLine * (T::group_lines + (row / kTileRows) * T::tile_lines);
        write_codes<T>(group.codes, tile, row % kTileRows);
        if constexpr (T::scales == Scales::F8Halves)
            if (std::fabs(group.wide_scale) >= kSafeScale) finite &= finite_group<F>(panel, g, row);
        if constexpr (T::scales == Scales::Bf16)
            if (bf16_to_float(group.scale & 0x7fff) >= kSafeScale) finite &= finite_group<F>(panel, g, row);
    }
    return finite;
}

bool pack_float_row(Format f, const std::uint8_t* src_row, int k, int row, std::uint8_t* panel) {
    const int size = float_bytes(f);
    bool finite = true;
    for (int i = 0; i < k; i++) {
        const std::uint8_t* from = src_row + i * size;
        std::memcpy(panel + (std::size_t(i) * kPanelRows + row) * size, from, size);
        finite &= f == Format::F32   ? finite32(read<std::uint32_t>(from))
                  : f == Format::F16 ? finite_half(read16(from))
                                     : finite_bf16(read16(from));
    }
    return finite;
}
float read_float(Format f, const std::uint8_t* p) {
    if (f == Format::F32) return read<float>(p);
    return f == Format::F16 ? half_to_float(read16(p)) : bf16_to_float(read16(p));
}

// A block of a source row is [float scale][128 codes]. The last block is padded.
constexpr std::size_t kF8PanelBlock = kF8ScaleBytes + std::size_t(kF8Block) * kPanelRows;

bool pack_f8_row(const std::uint8_t* src_row, int k, int row, std::uint8_t* panel) {
    bool finite = true;
    for (int i = 0; i < k; i++) {
        const std::uint8_t* block = src_row + i / kF8Block * kBlockBytes[int(Format::F8G128)];
        std::uint8_t* to = panel + i / kF8Block * kF8PanelBlock;
        const std::uint8_t code = block[sizeof(float) + i % kF8Block];
        if (i % kF8Block == 0) {
            std::memcpy(to + row * sizeof(float), block, sizeof(float));
            finite &= finite32(read<std::uint32_t>(block));
        }
        to[kF8ScaleBytes + i % kF8Block * kPanelRows + row] = code;
        const float scale = read<float>(block);
        finite &= finite_f8(code) && (std::fabs(scale) < kSafeScale || std::isfinite(scale * f8_to_float(code)));
    }
    return finite;
}
void unpack_f8_row(const std::uint8_t* panel, int k, int row, float* out) {
    for (int i = 0; i < k; i++) {
        const std::uint8_t* block = panel + i / kF8Block * kF8PanelBlock;
        const float scale = read<float>(block + row * sizeof(float));
        out[i] = scale * f8_to_float(block[kF8ScaleBytes + i % kF8Block * kPanelRows + row]);
    }
}

bool pack_any_row(Format f, const std::uint8_t* src_row, int k, int row, std::uint8_t* panel) {
    if (is_quantised(f)) return visit_quantised(f, [&]<Format F>() { return pack_row<F>(src_row, k, row, panel); });
    return f == Format::F8G128 ? pack_f8_row(src_row, k, row, panel) : pack_float_row(f, src_row, k, row, panel);
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
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
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
    const std::size_t bytes = kBlockBytes[int(f)];
    if (is_quantised(f))
        return visit_quantised(f, [=]<Format F>() {  // the last block of F4G16 is filled up
            constexpr int inputs = kGroup * Quantised<F>::span;
            return std::size_t((k + inputs - 1) / inputs) * bytes;
        });
    return (f == Format::F8G128 ? f8_blocks(k) : k) * bytes;
}

bool pack_panels(Format f, const std::uint8_t* src, int rows, int k, int first, int last, std::uint8_t* dst) {
    const std::size_t bytes = panel_bytes(f, k), row_bytes = source_row_bytes(f, k);
    bool finite = true;
    for (int p = first; p < last; p++) {
        std::uint8_t* panel = dst + bytes * p;
        std::memset(panel, 0, bytes);
        for (int row = 0; row < kPanelRows && p * kPanelRows + row < rows; row++)
            finite &= pack_any_row(f, src + (std::size_t(p) * kPanelRows + row) * row_bytes, k, row, panel);
    }
    return finite;
}

void unpack_row(const Weight& w, int row, std::span<float> to) {
    index_below(row, w.rows, "row");
    require(to.size() >= std::size_t(w.k), "unpack_row: the output is too short");
    float* out = to.data();
    const std::uint8_t* panel = w.panel(row / kPanelRows);
    row %= kPanelRows;
    if (is_quantised(w.format)) {
        visit_quantised(w.format, [&]<Format F>() {
            for (int g = 0; g < w.k / kGroup; g++) unpack_group<F>(panel, g, row, out + g * kGroup);
        });
    } else if (w.format == Format::F8G128) {
        unpack_f8_row(panel, w.k, row, out);
    } else {
        const int size = float_bytes(w.format);
        for (int i = 0; i < w.k; i++) out[i] = read_float(w.format, panel + (std::size_t(i) * kPanelRows + row) * size);
    }
}

}  // namespace freedive
