// Tile registers in software: what Tiles does, on any machine, by the words of Intel's manual. It traps where a
// processor would.
#pragma once

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

    template <int To>
    void zero() {
        check(rows(To));
        std::memset(data_[To], 0, sizeof data_[To]);
    }
    template <int To>
    void load(const void* from, std::int64_t stride) {
        zero<To>();
        for (int r = 0; r < rows(To); r++) std::memcpy(data_[To][r], (const char*)from + r * stride, row_bytes(To));
    }
    template <int From>
    void store(void* to, std::int64_t stride) {
        check(rows(From));
        for (int r = 0; r < rows(From); r++) std::memcpy((char*)to + r * stride, data_[From][r], row_bytes(From));
    }
    template <int Sum, int A, int B>
    void dot() {
        check(rows(Sum) && rows(A) && rows(B) && Sum != A && Sum != B && A != B);
        check(row_bytes(Sum) % 4 == 0 && row_bytes(A) % 4 == 0 && row_bytes(B) % 4 == 0);
        check(rows(A) == rows(Sum) && row_bytes(B) == row_bytes(Sum) && rows(B) == row_bytes(A) / 4);
        for (int m = 0; m < rows(Sum); m++)
            for (int n = 0; n < row_bytes(Sum) / 4; n++) {
                std::int32_t sum;
                std::memcpy(&sum, &data_[Sum][m][4 * n], 4);
                for (int k = 0; k < row_bytes(A); k++) sum += data_[A][m][k] * data_[B][k / 4][4 * n + k % 4];
                std::memcpy(&data_[Sum][m][4 * n], &sum, 4);
            }
    }

  private:
    static constexpr int kTiles = 8;
    static void check(bool valid) {
        if (!valid) __builtin_trap();
    }
    int rows(int tile) const { return config_.rows[tile]; }
    int row_bytes(int tile) const { return config_.row_bytes[tile]; }

    const TileConfig config_;
    std::int8_t data_[kTiles][kTileHeight][kTileBytes] = {};
};

}  // namespace freedive
