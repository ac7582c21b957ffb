// Weight formats and the packed panel: the one definition that packing, kernels and row look-up share.
//
// A panel is 32 output rows (two tiles of 16) over the whole input dimension K, so that one sequential pointer feeds
// a kernel. Quantised formats store, per group of 32 inputs:
//
//   scale lines | tile 0: code lines | tile 1: code lines          (a line is 64 bytes, aligned)
//
// A group of one tile is 8 quads of 4 inputs; a quad's codes are 64 bytes [16 rows][4 inputs] (layout R16K4). Code
// lines:
//   nibbles  4 lines, line j holds quad 2j in the low and quad 2j + 1 in the high halves
//   5th bit  1 line, bit i of byte b belongs to byte b of quad i
//   6th bit  2 lines, bits 2i..2i+1 of byte b of line h belong to byte b of quad 4h + i
//   8 bits   8 lines, one quad each, stored as signed value + 128
// A weight is scale * (code - zero) + minimum. K-quants keep their 6-bit scales; a line pair of super-scales precedes
// every 8 groups. Float formats store [K][32 rows].
#pragma once

#include <cstddef>
#include <cstdint>

namespace freedive {

constexpr int kPanelRows = 32;
constexpr int kTileRows = 16;
constexpr int kGroup = 32;
constexpr int kQuads = kGroup / 4;
constexpr int kLine = 64;
constexpr int kSuperGroups = 8;

enum class Format : int { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };
constexpr int kNumFormats = 11;

// How scales are kept: half floats for each group; those and minima; 6-bit scale and minimum under half-float
// super-scales; signed 8-bit scales for each half group under a half-float super-scale.
enum class Scales { Half, HalfMin, SuperMin, SuperHalves };

template <Format F>
struct Quantised;
template <int Bits, int Zero, Scales S>
struct QuantisedTraits {
    static constexpr int bits = Bits, zero = Zero;
    static constexpr Scales scales = S;
    static constexpr int tile_lines = Bits == 8 ? 8 : Bits;  // 4 nibble lines, then one line per further bit
    static constexpr int scale_lines = S == Scales::HalfMin ? 2 : 1;
    static constexpr int super_lines = S == Scales::SuperMin ? 2 : S == Scales::SuperHalves ? 1 : 0;
    static constexpr int group_bytes = kLine * (scale_lines + 2 * tile_lines);

    static constexpr std::size_t panel_bytes(int k) {
        return std::size_t(k / kGroup) * group_bytes +
               std::size_t((k / kGroup + kSuperGroups - 1) / kSuperGroups) * (super_lines * kLine);
    }
    // Start of group g inside a panel; its super-scale lines, if any, lie before the first group of each eight.
    static constexpr std::size_t group_offset(int g) {
        return std::size_t(g) * group_bytes + std::size_t(g / kSuperGroups + 1) * (super_lines * kLine);
    }
};
template <>
struct Quantised<Format::Q8_0> : QuantisedTraits<8, 128, Scales::Half> {};
template <>
struct Quantised<Format::Q4_0> : QuantisedTraits<4, 8, Scales::Half> {};
template <>
struct Quantised<Format::Q4_1> : QuantisedTraits<4, 0, Scales::HalfMin> {};
template <>
struct Quantised<Format::Q5_0> : QuantisedTraits<5, 16, Scales::Half> {};
template <>
struct Quantised<Format::Q5_1> : QuantisedTraits<5, 0, Scales::HalfMin> {};
template <>
struct Quantised<Format::Q4_K> : QuantisedTraits<4, 0, Scales::SuperMin> {};
template <>
struct Quantised<Format::Q5_K> : QuantisedTraits<5, 0, Scales::SuperMin> {};
template <>
struct Quantised<Format::Q6_K> : QuantisedTraits<6, 32, Scales::SuperHalves> {};

constexpr bool is_quantised(Format f) { return f >= Format::Q8_0; }
constexpr int float_bytes(Format f) { return f == Format::F32 ? 4 : 2; }

// Calls visit.template operator()<F>() for the quantised format f.
template <class Visitor>
auto visit_quantised(Format f, Visitor&& visit) {
    switch (f) {
        case Format::Q8_0:
            return visit.template operator()<Format::Q8_0>();
        case Format::Q4_0:
            return visit.template operator()<Format::Q4_0>();
        case Format::Q4_1:
            return visit.template operator()<Format::Q4_1>();
        case Format::Q5_0:
            return visit.template operator()<Format::Q5_0>();
        case Format::Q5_1:
            return visit.template operator()<Format::Q5_1>();
        case Format::Q4_K:
            return visit.template operator()<Format::Q4_K>();
        case Format::Q5_K:
            return visit.template operator()<Format::Q5_K>();
        default:
            return visit.template operator()<Format::Q6_K>();
    }
}

inline std::size_t panel_bytes(Format f, int k) {
    if (!is_quantised(f)) return std::size_t(k) * kPanelRows * float_bytes(f);
    return visit_quantised(f, [k]<Format F>() { return Quantised<F>::panel_bytes(k); });
}
inline int num_panels(int rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// A packed weight matrix [rows, k]; data is 64-byte aligned and not owned.
struct Weight {
    Format format;
    int rows, k;
    const std::uint8_t* data;
    const std::uint8_t* panel(int p) const { return data + panel_bytes(format, k) * p; }
};

float half_to_float(std::uint16_t h);
std::uint16_t float_to_half(float f);

// Packs panels [first, last) of a row-major matrix in the source format (GGUF blocks, or plain floats) into dst.
void pack_panels(Format f, const std::uint8_t* src, int rows, int k, int first, int last, std::uint8_t* dst);

// Bytes of one source row.
std::size_t source_row_bytes(Format f, int k);

// Dequantises one row of a packed matrix into out[k].
void unpack_row(const Weight& w, int row, float* out);

}  // namespace freedive
