// Attention to float and half-float keys and values, and to latents (MLA); included by kernels.inl.

// The first `width` columns of a matrix in pages of `rows` rows. Rows are `stride` elements apart. `after` is the
// memory that is read after the matrix; it is prefetched with the last page.
template <class T>
struct Paged {
    const std::uint8_t* const* pages;
    int num_pages, rows, width, stride;
    const void* after;
    // The distance from page p to the page after it, in elements: prefetches add it to an address in page p.
    std::ptrdiff_t ahead(int p) const {
        return (const T*)(p + 1 < num_pages ? pages[p + 1] : after) - (const T*)pages[p];
    }
};

// out[r][column] = sum over i of left[r][i] * right[i][column], in order of i. Each pass computes C vectors of columns.
// The function is not inlined because its accumulators need all registers.
template <int LeftStride, int OutStride, int R, int C, class T>
__attribute__((noinline)) void multiply(const float* left, const Paged<T>& right, float* out) {
    for (int column = 0; column < right.width; column += 16 * C) {
        F sum[R][C];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sum[r][c] = f_set(0.0f);
        const float* x = left;
        for (int p = 0; p < right.num_pages; p++) {
            const T* y = (const T*)right.pages[p] + column;
            const std::ptrdiff_t ahead = right.ahead(p);
            for (int i = 0; i < right.rows; i++, x++, y += right.stride) {
                F row[C];
                for (int c = 0; c < C; c++) {
                    row[c] = load_cached(y + 16 * c);
                    __builtin_prefetch(y + 16 * c + ahead, 0, 2);
                }
                for (int r = 0; r < R; r++) {
                    const F factor = f_set(x[r * LeftStride]);
                    for (int c = 0; c < C; c++) sum[r][c] = f_fma(factor, row[c], sum[r][c]);
                }
            }
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) f_store(out + r * OutStride + column + 16 * c, sum[r][c]);
    }
}

// Applies softmax to the scores [R][kSplitTokens] of rows [row, row + R), computes the weighted sums of values, and
// merges the results into the states of the rows.
template <class T, int R>
LANES void weigh_values(const AttendTask& task, int row, Span seen, float* scores, AttendPartial* states) {
    alignas(64) float values[R * kMaxHeadDim];
    AttendPartial next[R];
    const int begin = seen.begin * kPageTokens, start = task.begin + begin;
    for (int r = 0; r < R; r++) {
        next[r].values = values + r * kMaxHeadDim;
        softmax_row(scores + r * kSplitTokens + begin, seen.num_pages() * kPageTokens, task.first[row + r] - start,
                    task.last[row + r] - start, task.softcap, next[r]);
    }
    const Paged<T> cached{task.values + seen.begin, seen.num_pages(),  kPageTokens,
                          task.value_dim,           task.value_stride, task.values[seen.begin]};
    multiply<kSplitTokens, kMaxHeadDim, R, kAttendColumns>(scores + begin, cached, values);
    for (int r = 0; r < R; r++) fold(states[row + r], next[r], task.value_dim);
}

template <class T, int R = kAttendRows>
void attend_rows(const AttendTask& task, int row, AttendPartial* states) {
    if constexpr (R > 1)
        if (task.num_rows - row < R) return attend_rows<T, R - 1>(task, row, states);
    const Span seen = seen_pages(task, row, R);
    alignas(64) float scores[R * kSplitTokens];
    for (int p = seen.begin; p < seen.end; p++) {
        const std::uint8_t* after = p + 1 < seen.end ? task.keys[p + 1] : task.values[seen.begin];
        const Paged<T> keys{task.keys + p, 1, task.key_dim, kPageTokens, kPageTokens, after};
        multiply<kMaxHeadDim, kSplitTokens, R, kAttendColumns>((const float*)task.q + row * kMaxHeadDim, keys,
                                                               scores + p * kPageTokens);
    }
    if (seen.begin < seen.end) weigh_values<T, R>(task, row, seen, scores, states);
}

template <class T>
void attend(const AttendTask& task, AttendPartial* states) {
    for (int row = 0; row < task.num_rows; row += kAttendRows) attend_rows<T>(task, row, states);
}

// Computes scores[head][token + t] for kAttendRows tokens. Each latent is both key and value.
template <class T>
void score_latents(const AttendTask& task, int token, const void* after, float* scores) {
    alignas(64) float latents[kAttendRows * kMaxHeadDim], products[kAttendRows * kLatentHeads];
    const T* from = (const T*)task.values[token / kPageTokens] + (token % kPageTokens) * task.value_stride;
    for (int t = 0; t < kAttendRows; t++, from += task.value_stride)
        for (int d = 0; d < task.value_stride; d += 16) f_store(latents + t * kMaxHeadDim + d, load_cached(from + d));
    const std::uint8_t* q = (const std::uint8_t*)task.q;
    multiply<kMaxHeadDim, kLatentHeads, kAttendRows, 1>(
        latents, Paged<float>{&q, 1, task.key_dim, kLatentHeads, kLatentHeads, after}, products);
    for (int head = 0; head < task.num_rows; head++)
        for (int t = 0; t < kAttendRows; t++)
            scores[head * kSplitTokens + token + t] = products[t * kLatentHeads + head];
}

template <class T, int R = kAttendRows>
void weigh_latents(const AttendTask& task, int head, Span seen, float* scores, AttendPartial* states) {
    if constexpr (R > 1)
        if (task.num_rows - head < R) return weigh_latents<T, R - 1>(task, head, seen, scores, states);
    weigh_values<T, R>(task, head, seen, scores + head * kSplitTokens, states);
}

template <class T>
void attend_latent(const AttendTask& task, AttendPartial* states) {
    alignas(64) float scores[kLatentHeads * kSplitTokens];
    const Span seen = seen_pages(task, 0, 1);
    for (int p = 0; p < seen.end; p++)
        for (int t = 0; t < kPageTokens; t += kAttendRows) {
            const void* after = t == 0 && p + 1 < seen.end ? (const void*)task.values[p + 1] : task.q;
            score_latents<T>(task, p * kPageTokens + t, after, scores);
        }
    for (int head = 0; head < task.num_rows; head += kAttendRows) weigh_latents<T>(task, head, seen, scores, states);
}
