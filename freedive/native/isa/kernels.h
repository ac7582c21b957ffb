// The kernels of an instruction-set level: a table of functions that is chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../formats/format.h"
#include "train.h"

namespace freedive {

// A group of 32 activations quantised to 16 bits, with the sums that products need: x ~ scale * (256 * high + low). Two
// int8 products for each weight cost little where memory is the limit, and their error is negligible
// (docs/log/kernels.md). A group without outliers has only high halves: its low halves are zero, and products skip
// them.
constexpr int kLowBits = 8, kMaxHigh = 127, kMaxCode = (kMaxHigh << kLowBits) + 127;
struct QuantisedGroup {
    std::int8_t high[kGroup], low[kGroup];
    std::int32_t high_sum[2], low_sum[2];  // of each half group
    float scale, scaled_sum[2];            // scaled_sum = scale * sum of codes of a half group
    bool has_low;
};

// Panels of weights of one format, and rows of bfloat16 as to_bf16 makes them. The products are bfloat16 products with
// float sums, [panel][row][32]; a panel has room for whole tiles of rows.
constexpr int kMostRows = 512, kMostPanels = 16;
constexpr int kStretchSteps = 8;  // a step is 32 inputs
struct ManyRows {
    static constexpr std::size_t scratch_bytes = std::size_t(kMostRows) * kStretchSteps * 64;
    const std::uint8_t* panels[kMostPanels];
    int num_panels, k;
    const void* const* x;
    int num_rows;
    void* scratch;  // scratch_bytes, aligned to 64
    float* out;
    std::size_t panel_stride() const {
        return std::size_t(num_rows + kTileRows - 1) / kTileRows * kTileRows * kPanelRows;
    }
};

// Query rows of one key-value head, in order of position, against one split of keys, the first of which is at position
// `begin`. Row r sees keys [first[r], last[r]).
constexpr int kMaxAttendRows = 32;
constexpr int kPageTokens = 32;
constexpr int kSplitTokens = 256, kSplitPages = kSplitTokens / kPageTokens;
constexpr int kMaxHeadDim = 576;
constexpr int kLatentHeads = 16;
// The number format of cached keys and values: floats, half floats or int8 codes. A page of 32 tokens has for each head
// - keys [key_dim][32], then values [32][value_stride];
// - or as codes: keys as a panel whose rows are the tokens, so that dimensions share scales by 32; then values as a
// line of
//   scales, one for each token, and groups of codes whose rows are 32 columns and whose inputs are the tokens.
enum class CacheFormat : int { F32, F16, Int8 };
struct CachedCodes : QuantisedTraits<8, 128, Scales::Bf16> {};
constexpr int kNumCacheFormats = 3;
struct AttendTask {
    int num_rows;
    // Times the scale of scores: [rows][kMaxHeadDim]; or against latents [key_dim][16 rows]; or against right factors,
    // as round_query makes them, [kMaxAttendRows][columns of whole tiles].
    const void* q;
    int first[kMaxAttendRows], last[kMaxAttendRows];
    int begin;
    const std::uint8_t* const* keys;    // by page; unused against latents
    const std::uint8_t* const* values;  // by page; or latents [32 tokens][value_stride]
    int key_dim, value_dim, value_stride;
    float softcap;  // scores become softcap * tanh(score / softcap) if that is not 0
};
// What keys contribute to a row: values are exp-weighted by scores less `max`, `sum` is the sum of the weights.
struct AttendPartial {
    float max, sum;
    float* values;  // [value_dim]
};
// The keys and values of pages [begin, end) of a split in bfloat16, as right factors of products on tiles: keys [step
// of 32 dimensions][page][2 tiles of tokens], values [page][tile of columns]; a tile is [16 pairs][16][2].
struct SplitFactors {
    static constexpr std::size_t bytes = std::size_t(2) * kSplitTokens * kMaxHeadDim * 2;
    int begin, end;
    std::uint16_t *keys, *values;
};
constexpr float kNoScore = -1e30f;  // finite, so that a row that sees nothing in a split subtracts to 0, not NaN

enum class Activation : int { Silu, GeluTanh, SwigluOai, ClampedSilu, Sigmoid };
struct Glu {
    Activation activation;
    float limit;  // clamps gate (silu(gate) of ClampedSilu) from above and up on both sides if it is not 0
};

// Rows of floats, `stride` numbers apart from each other.
struct FloatRows {
    const float* first;
    std::ptrdiff_t stride;
    const float* row(int r) const { return first + r * stride; }
};

// Tokens of one head of the gated delta rule: S = decay * S, S += k (beta * (v - S^T k))^T, out = S^T q. Of the columns
// of S [key_dim][kDeltaColumns] the first `num_columns` are used; the others are zero.
constexpr int kDeltaColumns = 32;
struct DeltaTask {
    int num_tokens, key_dim, num_columns;
    bool by_channel;  // whether a decay is key_dim numbers, or one
    FloatRows q, k, v, beta, decay;
    float* out;  // may be null
    std::ptrdiff_t out_stride;
};
constexpr int kPeakBlock = 64;

// A decay is exp(-rate * softplus(x + bias)), or exp(bound * sigmoid(rate * (x + bias))) if `bound` is not 0.
struct DecayGate {
    const float *rate, *bias;
    float bound;
};

struct Kernels {
    const char* name;

    // out[r * 32 + i] = row i of the panel times activations x[r], for r < rows: QuantisedGroup where the format is
    // quantised, else float.
    void (*linear[kNumFormats])(const std::uint8_t* panel, int k, const void* const* x, int rows, float* out);
    // The same for many rows in bfloat16; null where the level has no tiles.
    void (*multiply_rows[kNumFormats])(const ManyRows& task);
    void (*to_bf16)(const float* x, int k, std::uint16_t* out);  // pads to a multiple of 32 with zeros; null likewise
    // out[k] = sum over the panel's rows i < 32 of x[i] * row i, added to what is there; float formats.
    void (*add_transposed)(Format f, const std::uint8_t* panel, int k, const float* x, float* out);
    // Groups whose largest number is above `outlier_threshold` times the row's root mean square keep low halves.
    void (*quantise)(const float* x, int k, float outlier_threshold, QuantisedGroup* out);
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
    void (*glu)(Glu glu, const float* gate, const float* up, int n, float* out);  // n is a multiple of 16
    void (*softcap)(const float* x, int n, float cap, float* out);                // likewise
    void (*weigh)(const float* x, int n, float top, float unit, float* out);      // exp((x - top) / unit); likewise
    void (*peaks)(const float* x, int n, float* out);  // out[i] = the largest of block i of kPeakBlock; n is a multiple
    void (*to_half)(const float* x, int n, std::uint16_t* out);    // saturates; n any
    void (*from_half)(const std::uint16_t* x, int n, float* out);  // n is a multiple of 16
    // Fold what a split's keys contribute into the states of the rows; of a latent task these are heads of one row.
    void (*attend[kNumCacheFormats])(const AttendTask& task, AttendPartial* states);
    void (*attend_latent[kNumCacheFormats - 1])(const AttendTask& task, AttendPartial* states);  // not of int8
    // The same on tiles, for rows of prompts: factors of a split serve many tasks. Null where the level has no tiles.
    void (*round_query)(const float* x, int n, std::uint16_t* out);  // pads to a multiple of 32 with zeros
    void (*load_split[kNumCacheFormats - 1])(const AttendTask& task, const SplitFactors& factors);  // not of int8
    void (*attend_split)(const AttendTask& task, const SplitFactors& factors, AttendPartial* states);
    void (*fold)(AttendPartial& into, const AttendPartial& next, int n);  // n is a multiple of 16
    void (*delta_rule)(const DeltaTask& task, float* state);
    void (*decays)(const DecayGate& gate, const float* x, int n, float* out);  // n is a multiple of 16
    TrainKernels train;
    FloatProducts products[kNumPrecisions];
};

extern const Kernels scalar_kernels, avx2_kernels, avx_vnni_kernels, avx512_kernels, neon_kernels;
const Kernels& amx_kernels();           // where avx512 is
const Kernels& emulated_amx_kernels();  // with tiles in software: the same code for machines without them, to test it

}  // namespace freedive
