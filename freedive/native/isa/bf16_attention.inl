// Attention of prompts on tile registers: scores and weighted sums of values are bfloat16 products with float sums.
// Included in the namespace of a level.

// Pairs of bfloat16 of two rows of numbers, rounded to nearest.
LANES __m512i round_pairs(F first, F second) {
    const auto rounded = [](F x) __attribute__((always_inline)) {
        return _mm512_castsi512_ps(i_add(_mm512_castps_si512(x), i_set(0x8000)));
    };
    return cut_pairs(rounded(first), rounded(second));
}

// Makes the pairs of rows [row, row + 32) of a matrix [rows][stride]: as many tiles as 16 columns go into `columns`. Rows
// from `rows` on count as zeros. Tiles lie `distance` apart.
template <class T>
LANES void pair_rows(const T* from, int row, int rows, int stride, int columns, Factor* out, int distance) {
    for (int column = 0; column < columns; column += kTileRows, out += distance)
        for (int i = 0; i < kStepInputs; i += 4) {
            const auto at = [&](int j) __attribute__((always_inline)) {
                return row + i + j < rows ? load_cached(from + (row + i + j) * stride + column) : f_set(0.0f);
            };
            _mm512_store_si512((*out)[i / 2], round_pairs(at(0), at(2)));
            _mm512_store_si512((*out)[i / 2 + 1], round_pairs(at(1), at(3)));
        }
}

constexpr int kPageTiles = kPageTokens / kTileRows;
LANES int whole_steps(int n) { return (n + kStepInputs - 1) / kStepInputs; }

template <class T>
void load_split(const AttendTask& task, const SplitFactors& factors) {
    auto* keys = (Factor*)factors.keys;
    auto* values = (Factor*)factors.values;
    const int columns = task.value_stride / kTileRows;
    for (int page = factors.begin; page < factors.end; page++) {
        for (int step = 0; step < whole_steps(task.key_dim); step++)
            pair_rows((const T*)task.keys[page], step * kStepInputs, task.key_dim, kPageTokens, kPageTokens,
                      keys + (step * kSplitPages + page) * kPageTiles, 1);
        pair_rows((const T*)task.values[page], 0, kPageTokens, task.value_stride, task.value_stride,
                  values + page * columns, 1);
    }
}

// sums[32 rows][stride], two tiles of columns at `column`: the products of `steps` steps of two strips of rows, which are
// `row_bytes` apart, and of right factors that are `distance` apart from step to step.
template <class Tiles>
LANES void multiply_strips(Tiles& tiles, const std::uint16_t* rows, std::int64_t row_bytes, const Factor* factors,
                           int distance, int steps, float* sums, int stride) {
    const std::uint16_t* second = rows + kTileHeight * row_bytes / 2;
    for (int i = 0; i < 4; i++) tiles.zero(i);
    for (int step = 0; step < steps; step++, factors += distance, rows += kStepInputs, second += kStepInputs) {
        tiles.load(kRight, factors[0], kTileBytes);
        tiles.load(kRight + 1, factors[1], kTileBytes);
        tiles.load(kLeft, rows, row_bytes);
        tiles.dot_bf16(kFloatSums, kLeft, kRight);
        tiles.dot_bf16(kFloatSums + 1, kLeft, kRight + 1);
        tiles.load(kLeft + 1, second, row_bytes);
        tiles.dot_bf16(kFloatSums + 2, kLeft + 1, kRight);
        tiles.dot_bf16(kFloatSums + 3, kLeft + 1, kRight + 1);
    }
    const std::int64_t bytes = stride * std::int64_t(sizeof(float));
    tiles.store(kFloatSums, sums, bytes);
    tiles.store(kFloatSums + 1, sums + kTileRows, bytes);
    tiles.store(kFloatSums + 2, sums + kTileHeight * stride, bytes);
    tiles.store(kFloatSums + 3, sums + kTileHeight * stride + kTileRows, bytes);
}

static_assert(kMaxAttendRows == 2 * kTileHeight);

template <class Tiles>
void attend_split(const AttendTask& task, const SplitFactors& factors, AttendPartial* states) {
    const Span seen = seen_pages(task, 0, task.num_rows);
    const int begin = std::max(seen.begin, factors.begin), pages = std::min(seen.end, factors.end) - begin;
    if (pages <= 0) return;
    alignas(64) float scores[kMaxAttendRows * kSplitTokens], values[kMaxAttendRows * kMaxHeadDim];
    alignas(64) std::uint16_t weights[kMaxAttendRows * kSplitTokens];
    Tiles tiles(strip_config(kTileHeight));
    const int steps = whole_steps(task.key_dim), columns = task.value_stride, start = task.begin + begin * kPageTokens;
    const auto* keys = (const Factor*)factors.keys + begin * kPageTiles;
    for (int page = 0; page < pages; page++)
        multiply_strips(tiles, (const std::uint16_t*)task.q, steps * kTileBytes, keys + page * kPageTiles,
                        kSplitPages * kPageTiles, steps, scores + page * kPageTokens, kSplitTokens);
    AttendPartial next[kMaxAttendRows];
    for (int r = 0; r < task.num_rows; r++) {
        next[r].values = values + r * columns;
        softmax_row(scores + r * kSplitTokens, pages * kPageTokens, task.first[r] - start, task.last[r] - start,
                    task.softcap, next[r]);
        to_bf16(scores + r * kSplitTokens, pages * kPageTokens, weights + r * kSplitTokens);
    }
    const auto* of_values = (const Factor*)factors.values + begin * (columns / kTileRows);
    for (int column = 0; column < columns; column += kPanelRows)
        multiply_strips(tiles, weights, kSplitTokens * 2, of_values + column / kTileRows, columns / kTileRows, pages,
                        values + column, columns);
    for (int r = 0; r < task.num_rows; r++) fold(states[r], next[r], task.value_dim);
}
