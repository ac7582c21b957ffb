// The amx level: the avx512 level, with tile registers for three things: rows of prompts in bfloat16
// (bf16_panels.inl, bf16_attention.inl); linear layers with many other activation rows (below), whose integer sums are
// exact and whose float code is the same, so that they give the bits of avx512; and bfloat16 products in training
// (tile_products.inl).
#include <algorithm>
#include <cstddef>
#include <utility>

#include "emulated_tiles.h"
#include "kernels.h"
#include "vec_avx512.h"

namespace freedive::amx {
namespace {

using namespace avx512;
#include "groups.inl"

#include "bf16.inl"

#include "tile_products.inl"  // uses bf16.inl

#include "bf16_panels.inl"

#include "math.inl"

#include "softmax.inl"  // uses math.inl

#include "bf16_attention.inl"  // uses softmax.inl and bf16_panels.inl

#include "cells_avx512.inl"

constexpr int kLeastRows = 6;  // with fewer rows the avx512 kernel is faster
constexpr int kRun = 4;        // products of a strip that are stored before the first is loaded again

// Register numbers: accumulators [strip of activation rows][tile of the panel], the two strips, and the codes.
constexpr int kSums = 0, kStrips = 4, kCodes = 6;
constexpr int kStripLine = 2 * kGroup;  // the high and the low halves of one row of a group, as in QuantisedGroup
static_assert(offsetof(QuantisedGroup, low) == kGroup && kStripLine == kTileBytes && kTileHeight == kTileRows);

// A stretch of a panel and two strips of up to 16 rows, which stay in the L1 cache. The inputs of one product share a
// scale.
template <class T>
struct Stretch {
    static constexpr int products = T::halves ? 2 : 1, groups = kRun / products;
    static constexpr int product_inputs = kGroup / products;
    struct Strip {
        alignas(64) std::int8_t x[groups][kTileHeight][kStripLine];
        using Products = std::int32_t[groups][products][kTileHeight][kPanelRows];
        alignas(64) Products high, low;
        bool has_low[groups];
    };
    alignas(64) std::int8_t codes[groups][2][kQuads][kLine];
    TileScales<T> scales[groups][2];
    Strip strips[2];
};

template <class T>
TileConfig config(int height) {
    constexpr int width = Stretch<T>::product_inputs;
    TileConfig config;
    for (int i = 0; i < 4; i++) config.shape(kSums + i, height, kTileRows * 4);
    for (int i = 0; i < 2; i++) {
        config.shape(kStrips + i, height, width);
        config.shape(kCodes + i, width / 4, kLine);
    }
    return config;
}

// Unpacks the codes of a tile and subtracts the zero point, which gives signed bytes.
template <class T, int Quad = 0>
LANES void unpack_codes(const std::uint8_t* tile, std::int8_t (&out)[kQuads][kLine]) {
    const C code = load_codes<T, Quad>(tile);
    _mm512_store_si512(out[Quad], T::zero ? _mm512_sub_epi8(code, _mm512_set1_epi8(char(T::zero))) : code);
    if constexpr (Quad + 1 < kQuads) unpack_codes<T, Quad + 1>(tile, out);
}

template <class T>
LANES void unpack(const std::uint8_t* panel, int begin, int end, Stretch<T>& stretch) {
    for (int g = begin; g < end; g++) {
        const std::uint8_t* group = panel + T::group_offset(g);
        const std::uint8_t* span = panel + T::group_offset(g / T::span * T::span) - T::span_lines * kLine;
        for (const std::uint8_t* line = g % T::span ? group : span; line < group + T::group_bytes; line += kLine)
            prefetch_panel(line);
        for (int t = 0; t < 2; t++) {
            stretch.scales[g - begin][t] = {span, group, t};
            unpack_codes<T>(group + kLine * (T::group_lines + t * T::tile_lines), stretch.codes[g - begin][t]);
        }
    }
}

// Copies groups [begin, end) of the rows to a strip. If the strip has more rows, the last row is repeated.
template <class Strip>
LANES void gather(const QuantisedGroup* const* x, int rows, int height, int begin, int end, Strip& strip) {
    for (int g = begin; g < end; g++) strip.has_low[g - begin] = false;
    for (int r = 0; r < height; r++)
        for (int g = begin; g < end; g++) {
            const QuantisedGroup& a = x[r < rows ? r : rows - 1][g];
            _mm512_store_si512(strip.x[g - begin][r], _mm512_loadu_si512(a.high));
            strip.has_low[g - begin] |= a.has_low;
        }
}

template <int Strip, class Tiles>
LANES void multiply_strip(Tiles& tiles, const std::int8_t* x, std::int32_t (*out)[kPanelRows]) {
    constexpr int sum = kSums + 2 * Strip, strip = kStrips + Strip;
    tiles.zero(sum);
    tiles.zero(sum + 1);
    tiles.load(strip, x, kStripLine);
    tiles.dot(sum, strip, kCodes);
    tiles.dot(sum + 1, strip, kCodes + 1);
    tiles.store(sum, out[0], sizeof out[0]);
    tiles.store(sum + 1, out[0] + kTileRows, sizeof out[0]);
}

template <class T, class Tiles>
LANES void multiply(Tiles& tiles, Stretch<T>& stretch, int groups, bool both) {
    auto& [first, second] = stretch.strips;
    for (int g = 0; g < groups; g++)
        for (int p = 0; p < stretch.products; p++) {
            const int input = p * stretch.product_inputs;
            tiles.load(kCodes, stretch.codes[g][0][input / 4], kLine);
            tiles.load(kCodes + 1, stretch.codes[g][1][input / 4], kLine);
            multiply_strip<0>(tiles, first.x[g][0] + input, first.high[g][p]);
            if (both) multiply_strip<1>(tiles, second.x[g][0] + input, second.high[g][p]);
            if (first.has_low[g]) multiply_strip<0>(tiles, first.x[g][0] + kGroup + input, first.low[g][p]);
            if (both && second.has_low[g]) multiply_strip<1>(tiles, second.x[g][0] + kGroup + input, second.low[g][p]);
        }
}

template <int Half, class T>
LANES void add_half(const TileScales<T> (&scales)[2], const std::int32_t* high, const std::int32_t* low, bool has_low,
                    const QuantisedGroup* a, F (&sum)[2][1]) {
    I products[2][1];
    for (int t = 0; t < 2; t++) {
        products[t][0] = _mm512_load_si512(high + t * kTileRows);
        if (has_low)
            products[t][0] = i_add(i_shift_left<kLowBits>(products[t][0]), _mm512_load_si512(low + t * kTileRows));
    }
    add_products<T, 1, Half>(products, has_low ? 1 : 1 << kLowBits, scales, &a, sum);
}

// Adds the scaled products of row r of a strip to `out`.
template <class T, class Strip>
LANES void add_row(const Stretch<T>& stretch, const Strip& strip, int r, int begin, int end, const QuantisedGroup* x,
                   float* out) {
    F sum[2][1];
    for (int t = 0; t < 2; t++) sum[t][0] = begin ? f_load(out + t * kTileRows) : f_set(0.0f);
    for (int g = 0; g < end - begin; g++) {
        const QuantisedGroup* a = x + begin + g;
        const auto& scales = stretch.scales[g];
        const bool has_low = strip.has_low[g];
        add_half<0>(scales, strip.high[g][0][r], strip.low[g][0][r], has_low, a, sum);
        if constexpr (T::halves) add_half<1>(scales, strip.high[g][1][r], strip.low[g][1][r], has_low, a, sum);
        if constexpr (T::minima) add_minima<T, 1>(scales, &a, sum);
    }
    for (int t = 0; t < 2; t++) f_store(out + t * kTileRows, sum[t][0]);
}

// Adds the products of groups [begin, end), which are unpacked in `stretch`, and the rows of one or two strips.
template <class T, class Tiles>
LANES void add_stretch(Tiles& tiles, Stretch<T>& stretch, const QuantisedGroup* const* x, int rows, int height,
                       int begin, int end, float* out) {
    const bool both = rows > height;
    for (int row = 0; row < rows; row += height)
        gather(x + row, rows - row, height, begin, end, stretch.strips[row > 0]);
    multiply(tiles, stretch, end - begin, both);
    for (int row = 0; row < rows; row++)
        add_row(stretch, stretch.strips[row >= height], row % height, begin, end, x[row], out + row * kPanelRows);
}

template <class Tiles, Format Fmt>
void linear(const std::uint8_t* panel, int k, const void* const* activations, int rows, float* out) {
    if (rows < kLeastRows) return avx512_kernels.linear[int(Fmt)](panel, k, activations, rows, out);
    using T = Quantised<Fmt>;
    const auto* x = (const QuantisedGroup* const*)activations;
    const int groups = k / kGroup, strips = (rows + kTileHeight - 1) / kTileHeight;
    const int height = (rows + strips - 1) / strips;
    Tiles tiles(config<T>(height));
    Stretch<T> stretch;
    for (int begin = 0; begin < groups; begin += stretch.groups) {
        const int end = begin + stretch.groups < groups ? begin + stretch.groups : groups;
        unpack(panel, begin, end, stretch);
        for (int row = 0; row < rows; row += 2 * height) {
            const int count = rows - row < 2 * height ? rows - row : 2 * height;
            add_stretch(tiles, stretch, x + row, count, height, begin, end, out + row * kPanelRows);
        }
    }
}

template <class Tiles, int Fmt = 0>
void fill_linear(Kernels& kernels) {
    kernels.multiply_rows[Fmt] = multiply_rows<Tiles, Format(Fmt)>;
    if constexpr (is_quantised(Format(Fmt))) kernels.linear[Fmt] = linear<Tiles, Format(Fmt)>;
    if constexpr (Fmt + 1 < kNumFormats) fill_linear<Tiles, Fmt + 1>(kernels);
}

template <class Tiles, class Cells>
Kernels table(const char* name) {
    Kernels kernels = avx512_kernels;
    kernels.name = name;
    fill_linear<Tiles>(kernels);
    kernels.to_bf16 = to_bf16;
    kernels.round_query = round_query;
    kernels.load_split[int(CacheFormat::F32)] = load_split<float>;
    kernels.load_split[int(CacheFormat::F16)] = load_split<std::uint16_t>;
    kernels.attend_split = attend_split<Tiles>;
    kernels.products[int(Precision::Bfloat16)] = tile_products<Tiles, Cells>;
    return kernels;
}

}  // namespace
}  // namespace freedive::amx

namespace freedive {
// The tables are built on first use: static initialisers would run AVX512 code on processors without it.
const Kernels& amx_kernels() {
    static const Kernels kernels = amx::table<Tiles, amx::VectorCells>("amx");
    return kernels;
}
const Kernels& emulated_amx_kernels() {
    static const Kernels kernels = amx::table<EmulatedTiles, amx::PlainCells>("amx-emulated");
    return kernels;
}
}  // namespace freedive
