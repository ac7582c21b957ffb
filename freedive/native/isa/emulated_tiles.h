// A software emulation of Tiles for any processor, after Intel's Software Developer's Manual. Invalid uses trap, as
// they do on a processor.
#pragma once

#include <cmath>
#include <cstring>

#include "tiles.h"

namespace freedive {

class EmulatedTiles {
  public:
    explicit EmulatedTiles(const TileConfig& config) : config_(config) {
        check(config.palette == 1 && config.start_row == 0);
        for (int tile = 0; tile < 16; tile++) {
            check(config.rows[tile] <= kTileHeight && config.row_bytes[tile] <= kTileBytes);
            check((config.rows[tile] == 0) == (config.row_bytes[tile] == 0) && (tile < kTiles || !config.rows[tile]));
        }
    }

    void zero(int to) {
        check(rows(to));
        std::memset(data_[to], 0, sizeof data_[to]);
    }
    void load(int to, const void* from, std::int64_t stride) {
        zero(to);
        for (int r = 0; r < rows(to); r++) std::memcpy(data_[to][r], (const char*)from + r * stride, row_bytes(to));
    }
    void store(int from, void* to, std::int64_t stride) {
        check(rows(from));
        for (int r = 0; r < rows(from); r++) std::memcpy((char*)to + r * stride, data_[from][r], row_bytes(from));
    }
    void fetch(const void*) {}
    void dot(int sum, int a, int b) {
        check_shapes(sum, a, b);
        for (int m = 0; m < rows(sum); m++)
            for (int n = 0; n < row_bytes(sum) / 4; n++) {
                std::int32_t total;
                std::memcpy(&total, &data_[sum][m][4 * n], 4);
                for (int k = 0; k < row_bytes(a); k++) total += data_[a][m][k] * data_[b][k / 4][4 * n + k % 4];
                std::memcpy(&data_[sum][m][4 * n], &total, 4);
            }
    }

    // Even and odd inputs have separate accumulators. Subnormal inputs and results are flushed to zero.
    void dot_bf16(int sum, int a, int b) {
        check_shapes(sum, a, b);
        for (int m = 0; m < rows(sum); m++)
            for (int n = 0; n < row_bytes(sum) / 4; n++) {
                float parts[2] = {}, total;
                for (int k = 0; k < row_bytes(a) / 2; k++)
                    parts[k % 2] = normal(
                        std::fma(bf16(data_[a][m] + 2 * k), bf16(data_[b][k / 2] + 4 * n + 2 * (k % 2)), parts[k % 2]));
                std::memcpy(&total, &data_[sum][m][4 * n], 4);
                total = normal(normal(total) + normal(parts[0] + parts[1]));
                std::memcpy(&data_[sum][m][4 * n], &total, 4);
            }
    }

  private:
    static constexpr int kTiles = 8;
    void check_shapes(int sum, int a, int b) const {
        check(rows(sum) && sum != a && sum != b && a != b && row_bytes(sum) % 4 == 0 && row_bytes(a) % 4 == 0);
        check(rows(a) == rows(sum) && row_bytes(b) == row_bytes(sum) && rows(b) == row_bytes(a) / 4);
    }
    static float normal(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
    static float bf16(const std::int8_t* bytes) {
        std::uint16_t half;
        std::memcpy(&half, bytes, sizeof half);
        const std::uint32_t bits = std::uint32_t(half) << 16;
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return normal(x);
    }
    static void check(bool valid) {
        if (!valid) __builtin_trap();
    }
    int rows(int tile) const { return config_.rows[tile]; }
    int row_bytes(int tile) const { return config_.row_bytes[tile]; }

    const TileConfig config_;
    std::int8_t data_[kTiles][kTileHeight][kTileBytes] = {};
};

}  // namespace freedive
