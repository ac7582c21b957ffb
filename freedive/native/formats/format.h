// Weight formats and the packed panel: the one definition that packing, kernels and row lookup share.
//
// A panel is 32 output rows (two tiles of 16) over the whole input dimension K, so that one sequential pointer feeds
// a kernel. Quantised formats store groups of 32 inputs, and one or more groups that share scales make a span:
//
//   lines of the span | group | group ...        group: its own scale lines | tile 0: code lines | tile 1: code lines
//
// A line is 64 bytes, aligned. A group of one tile is 8 quads of 4 inputs; a quad's codes are 64 bytes [16 rows][4
// inputs] (layout R16K4). Codes lie in planes of 1, 2, 4 or 8 bits, as many lines as bits; a line of a plane of w bits
// holds 8 / w quads, the first in the lowest bits. Codes of 3, 5 and 6 bits have a plane of the low 2 or 4 bits and a
// plane of the high bits.
//
// A weight is scale * (code - zero) + minimum, where `code` may be looked up in a table of 16. F32, F16 and BF16 store
// [K][32 rows]; F8G128 the same in bytes (e4m3), with a pair of lines of 32 float scales before every 128 inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace freedive {

constexpr int kPanelRows = 32;
constexpr int kTileRows = 16;
constexpr int kGroup = 32;
constexpr int kQuads = kGroup / 4;
constexpr int kLine = 64;

// The formats of files and, from IQ1S on, freedive's own. IQ1S to IQ3S hold what GGUF's IQ formats look up in grids, as
// codes (checkpoint/repack.py makes them); of the others, G is the group size that shares a scale, Z means zero points.
enum class Format : int {
    F32,
    F16,
    BF16,
    F8G128,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    TQ2_0,
    IQ1S,
    IQ1M,
    IQ2,
    IQ3XXS,
    IQ3S,
    F4G16,
    I4G64,
    I4G128,
    I8G128,
    I4G32Z,
    I4G64Z,
    I4G128Z
};
constexpr int kNumFormats = 30;

// How scales are stored. The first four are for each span: a half float; a bfloat16; a half float with a half-float
// minimum, or with a zero point. The Super ones have half-float super-scales for each span, and for each group: a 6-bit
// scale and minimum; signed 8-bit scales of both half groups; 4-bit scales (low) and minima (high) of both half groups.
// F8Halves has a float for each span, and e4m3 scales of both half groups.
enum class Scales { Half, Bf16, HalfMin, HalfZero, SuperMin, SuperHalves, SuperHalvesMin, F8Halves };

template <Format F>
struct Quantised;
template <int Bits, int Zero, Scales S, int Span = 1>
struct QuantisedTraits {
    static constexpr int bits = Bits, zero = Zero;
    static constexpr int code_bits = Bits;  // in the product; more than Bits if codes are looked up in a table
    static constexpr int low_bits = Bits == 8 ? 8 : Bits >= 4 ? 4 : 2, high_bits = Bits - low_bits;
    static constexpr Scales scales = S;
    static constexpr float unit = 1;   // of super-scales: a power of two, so that it alters no bit
    static constexpr int span = Span;  // number of groups
    static constexpr bool halves = S == Scales::SuperHalves || S == Scales::SuperHalvesMin || S == Scales::F8Halves;
    static constexpr bool super = S == Scales::SuperMin || halves;
    static constexpr bool minima =
        S == Scales::HalfMin || S == Scales::HalfZero || S == Scales::SuperMin || S == Scales::SuperHalvesMin;
    static constexpr int span_lines = minima || S == Scales::F8Halves ? 2 : 1, group_lines = super ? 1 : 0;
    static constexpr int tile_lines = Bits;
    static constexpr int group_bytes = kLine * (group_lines + 2 * tile_lines);

    static constexpr std::size_t panel_bytes(int k) {
        const int groups = k / kGroup, spans = (groups + Span - 1) / Span;
        return std::size_t(groups) * group_bytes + std::size_t(spans) * (span_lines * kLine);
    }
    // The offset of group g inside a panel. The lines of a span lie before its first group.
    static constexpr std::size_t group_offset(int g) {
        return std::size_t(g) * group_bytes + std::size_t(g / Span + 1) * (span_lines * kLine);
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
struct Quantised<Format::Q2_K> : QuantisedTraits<2, 0, Scales::SuperHalvesMin, 8> {};
template <>
struct Quantised<Format::Q3_K> : QuantisedTraits<3, 4, Scales::SuperHalves, 8> {};
template <>
struct Quantised<Format::Q4_K> : QuantisedTraits<4, 0, Scales::SuperMin, 8> {};
template <>
struct Quantised<Format::Q5_K> : QuantisedTraits<5, 0, Scales::SuperMin, 8> {};
template <>
struct Quantised<Format::Q6_K> : QuantisedTraits<6, 32, Scales::SuperHalves, 8> {};
template <>
struct Quantised<Format::IQ4_NL> : QuantisedTraits<4, 128, Scales::Half> {
    static constexpr int code_bits = 8;
    static constexpr std::uint8_t table[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
};
template <>
struct Quantised<Format::IQ4_XS> : QuantisedTraits<4, 128, Scales::SuperHalves, 8> {
    static constexpr int code_bits = 8;
    static constexpr const auto& table = Quantised<Format::IQ4_NL>::table;
};
template <>
struct Quantised<Format::MXFP4> : QuantisedTraits<4, 12, Scales::Bf16> {  // a half float cannot hold 2^-128
    static constexpr int code_bits = 5;
    static constexpr std::uint8_t table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
};
template <>
struct Quantised<Format::TQ2_0> : QuantisedTraits<2, 1, Scales::Half, 8> {};
template <>
struct Quantised<Format::IQ1S> : QuantisedTraits<2, 0, Scales::SuperMin, 8> {
    static constexpr float unit = 0.125f;
};
template <>
struct Quantised<Format::IQ1M>
    : QuantisedTraits<3, 9, Scales::SuperHalves, 8> {  // -1, 0, 1, and an eighth more or less
    static constexpr int code_bits = 5;
    static constexpr float unit = 0.125f;
    static constexpr std::uint8_t table[16] = {2, 10, 18, 9, 0, 8, 16, 9};
};
template <>
struct Quantised<Format::IQ2> : QuantisedTraits<3, 43, Scales::SuperHalves, 8> {  // 8, 25, 43, and the same negative
    static constexpr int code_bits = 7;
    static constexpr float unit = 0.125f;
    static constexpr std::uint8_t table[16] = {51, 68, 86, 43, 35, 18, 0, 43};
};
template <>
struct Quantised<Format::IQ3XXS> : QuantisedTraits<4, 31, Scales::SuperHalves, 8> {
    static constexpr int code_bits = 6;
    static constexpr float unit = 0.5f;
    static constexpr std::uint8_t table[16] = {33, 37, 41, 45, 49, 53, 57, 62, 29, 25, 21, 17, 13, 9, 5, 0};
};
template <>
struct Quantised<Format::IQ3S> : QuantisedTraits<4, 15, Scales::SuperHalves, 8> {
    static constexpr int code_bits = 5;
    static constexpr std::uint8_t table[16] = {16, 18, 20, 22, 24, 26, 28, 30, 14, 12, 10, 8, 6, 4, 2, 0};
};
template <>
struct Quantised<Format::F4G16> : QuantisedTraits<4, 12, Scales::F8Halves, 8> {  // NVFP4
    static constexpr int code_bits = 5;
    static constexpr float unit = 128;  // e4m3 is read in units of 256, and the table is doubled
    static constexpr const auto& table = Quantised<Format::MXFP4>::table;
};
template <>
struct Quantised<Format::I4G64> : QuantisedTraits<4, 8, Scales::Half, 2> {};
template <>
struct Quantised<Format::I4G128> : QuantisedTraits<4, 8, Scales::Half, 4> {};
template <>
struct Quantised<Format::I8G128> : QuantisedTraits<8, 128, Scales::Half, 4> {};
template <>
struct Quantised<Format::I4G32Z> : QuantisedTraits<4, 0, Scales::HalfZero> {};
template <>
struct Quantised<Format::I4G64Z> : QuantisedTraits<4, 0, Scales::HalfZero, 2> {};
template <>
struct Quantised<Format::I4G128Z> : QuantisedTraits<4, 0, Scales::HalfZero, 4> {};

constexpr bool is_quantised(Format f) { return f >= Format::Q8_0; }
constexpr int float_bytes(Format f) { return f == Format::F32 ? 4 : f == Format::F8G128 ? 1 : 2; }

constexpr int kF8Block = 128;  // inputs that share a scale in F8G128
constexpr int kF8ScaleBytes = kPanelRows * int(sizeof(float));
constexpr int f8_blocks(int k) { return (k + kF8Block - 1) / kF8Block; }

// Calls visit.template operator()<F>() for the quantised format f.
template <class Visitor, int F = int(Format::Q8_0)>
auto visit_quantised(Format f, Visitor&& visit) {
    if constexpr (F + 1 < kNumFormats)
        if (f != Format(F)) return visit_quantised<Visitor, F + 1>(f, static_cast<Visitor&&>(visit));
    return visit.template operator()<Format(F)>();
}

inline std::size_t panel_bytes(Format f, int k) {
    if (is_quantised(f)) return visit_quantised(f, [k]<Format F>() { return Quantised<F>::panel_bytes(k); });
    const std::size_t scales = f == Format::F8G128 ? std::size_t(f8_blocks(k)) * kF8ScaleBytes : 0;
    return std::size_t(k) * kPanelRows * float_bytes(f) + scales;
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

// Packs panels [first, last) of a row-major matrix in the source format (blocks, or plain floats) into dst. False if
// a scale or a float is not finite.
bool pack_panels(Format f, const std::uint8_t* src, int rows, int k, int first, int last, std::uint8_t* dst);

// Packs all panels on `num_threads` threads; the result is that of pack_panels(). Throws std::invalid_argument if the
// sizes do not match the shape.
bool pack_matrix(Format f, std::span<const std::uint8_t> src, int rows, int k, std::span<std::uint8_t> dst,
                 int num_threads);

// Bytes of one source row.
std::size_t source_row_bytes(Format f, int k);

// Dequantises one row of a packed matrix into the first k numbers of `out`. Throws if there is no such row or no room.
void unpack_row(const Weight& w, int row, std::span<float> out);

}  // namespace freedive
