// What an instruction-set level provides: one table of functions, chosen at run time.
#pragma once

#include <cstdint>

#include "../formats/format.h"

namespace freedive {

// Activation rows quantised to int8 per group of 32: x ~ scale * q. Rows lie `k` (codes) or `k / 32` (the rest) apart.
struct QuantisedRows {
    int k;
    std::int8_t* q;         // [rows, k]
    float* scale;           // [rows, k / 32]
    float* scaled_sum;      // [rows, k / 32]: scale * sum of q
    std::int32_t* half_sum; // [rows, k / 16]: sum of q over each half group
};

// Query rows of one key-value head against the keys [begin, end) of one split. Positions are absolute; `begin` is the
// first of a page. Row r sees keys [first[r], last[r]).
constexpr int kMaxAttendRows = 8;
constexpr int kPageTokens = 32;
constexpr int kSplitTokens = 256;
constexpr int kMaxHeadDim = 576;
struct AttendTask {
    int num_rows;
    const float* q[kMaxAttendRows];
    int first[kMaxAttendRows], last[kMaxAttendRows];
    int begin, end;
    const std::uint8_t* const* keys;    // by page from `begin`: [key_dim][32 tokens]
    const std::uint8_t* const* values;  // by page from `begin`: [32 tokens][value_stride]
    int key_dim, value_dim, value_stride;
    float scale;
};
// What a split contributes to a row: values are exp-weighted by scores less `max`, `sum` is the sum of the weights.
struct AttendPartial {
    float max, sum;
    float* values;  // [value_stride]
};
constexpr float kNoScore = -1e30f;  // finite, so that a row that sees nothing in a split subtracts to 0, not NaN

enum class Activation : int { Silu };

struct Kernels {
    const char* name;
    int attend_rows;  // rows that attend() handles best at once

    // out[r * ld + i] = row i of panels [panel, panel + 1) times activation row r, for r < rows.
    void (*linear[kNumFormats])(const std::uint8_t* panel, int k, const void* x, int row, int rows, float* out, int ld);
    void (*quantise)(const float* x, int k, const QuantisedRows& out, int row);
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
    void (*glu)(Activation act, const float* gate, const float* up, int n, float* out);  // n is a multiple of 16
    void (*to_half)(const float* x, int n, std::uint16_t* out);                         // saturates; n any
    void (*attend_f32)(const AttendTask& task, AttendPartial* out);
    void (*attend_f16)(const AttendTask& task, AttendPartial* out);
    void (*fold)(AttendPartial& into, const AttendPartial& next, int n);  // n is a multiple of 16
};

// Plain float activations, for float weights: [rows, stride].
struct FloatRows {
    const float* x;
    int stride;
};

extern const Kernels scalar_kernels, avx2_kernels, avx512_kernels, neon_kernels;

}  // namespace freedive
