// Attention of prompts on tile registers: scores and weighted sums of values are bfloat16 products with float sums.
// Included in the namespace of a level.

// Inputs of a step of 32 are paired as two vectors of 16 lie: 0 with 16, 1 with 17 and so on.
constexpr int kApart = kStepInputs / 2;

// Pairs of bfloat16, rounded to nearest.
LANES __m512i round_pairs(F first, F second) {
    const auto rounded = [](F x) __attribute__((always_inline)) {
        return _mm512_castsi512_ps(i_add(_mm512_castps_si512(x), i_set(0x8000)));
    };
    return cut_pairs(rounded(first), rounded(second));
}

// Right factors of rows [row, row + 32) of a matrix [rows][stride], one for every 16 columns. Rows from `rows` on count
// as zeros.
template <class T>
LANES void pair_rows(const T* from, int row, int rows, int stride, int columns, Factor* out) {
    for (int column = 0; column < columns; column += kTileRows, out++)
        for (int i = 0; i < kApart; i++) {
            const auto at = [&](int r) __attribute__((always_inline)) {
                return r < rows ? load_cached(from + r * stride + column) : f_set(0.0f);
            };
            _mm512_store_si512((*out)[i], round_pairs(at(row + i), at(row + i + kApart)));
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
                      keys + (step * kSplitPages + page) * kPageTiles);
        pair_rows((const T*)task.values[page], 0, kPageTokens, task.value_stride, task.value_stride,
                  values + page * columns);
    }
}

// sums[32 rows][stride], two tiles of columns at `column`: the products of `steps` steps of two strips of rows, which
// are `row_bytes` apart, and of right factors that are `distance` apart from step to step.
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

// 2^x for x <= 0 to about 1e-5 of its size, which is much less than bfloat16 distinguishes.
LANES F power_of_two(F x) {
    const F n = f_round(x), f = f_sub(x, n);
    F p = f_set(0.009618129f);
    for (const float c : {0.055504109f, 0.240226507f, 0.693147181f, 1.0f}) p = f_fma(p, f, f_set(c));
    return _mm512_scalef_ps(p, n);
}

// Which of keys [i, i + 16) are in [from, to).
LANES __mmask16 visible(int i, int from, int to) {
    const auto below = [i](int end) { return end <= i ? 0u : end >= i + 16 ? 0xffffu : (1u << (end - i)) - 1; };
    return __mmask16(below(to) & ~below(from));
}

// Weighs `steps` steps of a row's scores by exp(score - max), in bfloat16. Only keys [from, to) are visible; the
// weights of the others are 0. Where all are visible, there is nothing to mask.
template <bool Masks>
LANES void weigh_visible(const float* scores, int steps, int from, int to, AttendPartial& out, std::uint16_t* weights) {
    const int n = steps * kStepInputs;
    F top = f_set(kNoScore);
    for (int i = 0; i < n; i += 16) {
        const F score = f_load(scores + i);
        top = Masks ? _mm512_mask_max_ps(top, visible(i, from, to), top, score) : f_max(top, score);
    }
    out.max = f_max_lanes(top);
    const F unit = f_set(1.44269504088896341f), shift = f_mul(f_set(-out.max), unit);
    F sum = f_set(0.0f);
    for (int i = 0; i < n; i += kStepInputs) {
        const auto weight = [&](int at) __attribute__((always_inline)) {
            const F w = power_of_two(f_fma(f_load(scores + at), unit, shift));
            return Masks ? _mm512_maskz_mov_ps(visible(at, from, to), w) : w;
        };
        const F first = weight(i), second = weight(i + kApart);
        sum = f_add(f_add(sum, first), second);
        _mm512_store_si512(weights + i, round_pairs(first, second));
    }
    out.sum = sum_lanes(sum);
}

LANES void weigh_row(float* scores, int steps, int from, int to, float cap, AttendPartial& out,
                     std::uint16_t* weights) {
    for (int i = 0; cap != 0 && i < steps * kStepInputs; i += 16)
        f_store(scores + i, f_softcap(f_load(scores + i), cap));
    if (from <= 0 && to >= steps * kStepInputs)
        weigh_visible<false>(scores, steps, from, to, out, weights);
    else
        weigh_visible<true>(scores, steps, from, to, out, weights);
}

static_assert(kMaxAttendRows == 2 * kTileHeight);

static_assert(kPageTokens == kStepInputs);

// Rounds a query for load_split's keys.
void round_query(const float* x, int n, std::uint16_t* out) {
    for (int i = 0; i < n; i += kStepInputs) {
        const auto part = [&](int at) __attribute__((always_inline)) {
            const int left = n - at;
            return _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0, x + at);
        };
        _mm512_storeu_si512(out + i, round_pairs(part(i), part(i + kApart)));
    }
}

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
        weigh_row(scores + r * kSplitTokens, pages, task.first[r] - start, task.last[r] - start, task.softcap, next[r],
                  weights + r * kSplitTokens);
    }
    const auto* of_values = (const Factor*)factors.values + begin * (columns / kTileRows);
    for (int column = 0; column < columns; column += kPanelRows)
        multiply_strips(tiles, weights, kSplitTokens * 2, of_values + column / kTileRows, columns / kTileRows, pages,
                        values + column, columns);
    for (int r = 0; r < task.num_rows; r++) fold(states[r], next[r], task.value_dim);
}
