// Attention to keys and values, and to latents; included by kernels.inl.

LANES F load_cached(const float* p) { return f_load(p); }
LANES F load_cached(const std::uint16_t* p) { return f_load_half(p); }

// scores[r][t] for the 32 keys of one page, -inf where row r does not see key t.
template <class T, int R>
LANES void score_page(const AttendTask& task, int position, float* scores) {
    const T* keys = (const T*)task.keys[(position - task.begin) / kPageTokens];
    F s[2][R];
    for (int r = 0; r < R; r++) s[0][r] = s[1][r] = f_set(0.0f);
    for (int d = 0; d < task.key_dim; d++, keys += kPageTokens) {
        const F k0 = load_cached(keys), k1 = load_cached(keys + 16);
        for (int r = 0; r < R; r++) {
            const F q = f_set(task.q[r][d]);
            s[0][r] = f_fma(k0, q, s[0][r]);
            s[1][r] = f_fma(k1, q, s[1][r]);
        }
    }
    const F scale = f_set(task.scale);
    for (int r = 0; r < R; r++) {
        float* row = scores + r * kSplitTokens;
        F s0 = f_mul(s[0][r], scale), s1 = f_mul(s[1][r], scale);
        if (task.softcap != 0) s0 = f_softcap(s0, task.softcap), s1 = f_softcap(s1, task.softcap);
        f_store(row, s0);
        f_store(row + 16, s1);
        const int from = task.first[r] - position, to = task.last[r] - position;
        if (from > 0 || to < kPageTokens)
            for (int t = 0; t < kPageTokens; t++)
                if (t < from || t >= to) row[t] = -__builtin_inff();
    }
}

// Scores -> exp(score - max), in place.
LANES void softmax_row(float* scores, int n, AttendPartial& out) {
    F top = f_set(kNoScore);
    for (int i = 0; i < n; i += 16) top = f_max(f_load(scores + i), top);
    out.max = f_max_lanes(top);
    const F shift = f_set(out.max);
    F sum = f_set(0.0f);
    for (int i = 0; i < n; i += 16) {
        const F w = f_exp(f_sub(f_load(scores + i), shift));
        f_store(scores + i, w);
        sum = f_add(sum, w);
    }
    out.sum = sum_lanes(sum);
}

template <class T, int R, int Columns>
LANES void weigh_values(const AttendTask& task, const float* weights, int column, AttendPartial* out) {
    F acc[R][Columns];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < Columns; c++) acc[r][c] = f_set(0.0f);
    for (int position = task.begin; position < task.end; position += kPageTokens) {
        const T* values = (const T*)task.values[(position - task.begin) / kPageTokens] + column;
        const float* w = weights + (position - task.begin);
        for (int t = 0; t < kPageTokens; t++, values += task.value_stride) {
            F v[Columns];
            for (int c = 0; c < Columns; c++) v[c] = load_cached(values + 16 * c);
            for (int r = 0; r < R; r++) {
                const F p = f_set(w[r * kSplitTokens + t]);
                for (int c = 0; c < Columns; c++) acc[r][c] = f_fma(p, v[c], acc[r][c]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < Columns; c++) f_store(out[r].values + column + 16 * c, acc[r][c]);
}

template <class T, int R>
void attend_rows(const AttendTask& task, AttendPartial* out) {
    float scores[R * kSplitTokens];
    for (int position = task.begin; position < task.end; position += kPageTokens)
        score_page<T, R>(task, position, scores + (position - task.begin));
    const int n = (task.end - task.begin + kPageTokens - 1) / kPageTokens * kPageTokens;
    for (int r = 0; r < R; r++) softmax_row(scores + r * kSplitTokens, n, out[r]);
    int column = 0;
    for (; column + 32 <= task.value_stride; column += 32) weigh_values<T, R, 2>(task, scores, column, out);
    for (; column < task.value_stride; column += 16) weigh_values<T, R, 1>(task, scores, column, out);
}

template <class T, int R = kAttendRows>
void attend(const AttendTask& task, AttendPartial* out) {
    if (task.num_rows == R) return attend_rows<T, R>(task, out);
    if constexpr (R > 1) attend<T, R - 1>(task, out);
}

// Token t of the split, in the pages of a latent task.
template <class T>
LANES const T* latent(const LatentTask& task, int t) {
    return (const T*)task.latents[t / kPageTokens] + (t % kPageTokens) * task.stride;
}

// scores[t][head] of R latents from t on, of which `count` are real.
template <class T, int R>
LANES void score_latents(const LatentTask& task, int t, int count, float* scores) {
    alignas(64) float rows[R][kMaxHeadDim];
    F s[R];
    for (int r = 0; r < R; r++) {
        const T* from = latent<T>(task, t + (r < count ? r : 0));
        for (int d = 0; d < task.stride; d += 16) f_store(rows[r] + d, load_cached(from + d));
        s[r] = f_set(0.0f);
    }
    for (int d = 0; d < task.dim; d++) {
        const F q = f_load(task.q + d * kLatentHeads);
        for (int r = 0; r < R; r++) s[r] = f_fma(q, f_set(rows[r][d]), s[r]);
    }
    for (int r = 0; r < count && r < R; r++) f_store(scores + r * kLatentHeads, f_mul(s[r], f_set(task.scale)));
}

// Values of R heads from `head` on: sums of latents weighted by weights[t][head], 16 numbers at a time.
template <class T, int R>
LANES void weigh_latents(const LatentTask& task, const float* weights, int head, int count, AttendPartial* out) {
    for (int column = 0; column < task.rank; column += 16) {
        F acc[R];
        for (int r = 0; r < R; r++) acc[r] = f_set(0.0f);
        for (int t = 0; t < task.end - task.begin; t++) {
            const F v = load_cached(latent<T>(task, t) + column);
            const float* w = weights + t * kLatentHeads + head;
            for (int r = 0; r < R; r++) acc[r] = f_fma(f_set(w[r < count ? r : 0]), v, acc[r]);
        }
        for (int r = 0; r < count && r < R; r++) f_store(out[head + r].values + column, acc[r]);
    }
}

template <class T>
void attend_latent(const LatentTask& task, AttendPartial* out) {
    constexpr int R = kAttendRows;
    alignas(64) float scores[kSplitTokens * kLatentHeads], tops[kLatentHeads], sums[kLatentHeads];
    const int n = task.end - task.begin;
    for (int t = 0; t < n; t += R) score_latents<T, R>(task, t, n - t, scores + t * kLatentHeads);
    F top = f_set(kNoScore), sum = f_set(0.0f);
    for (int t = 0; t < n; t++) top = f_max(f_load(scores + t * kLatentHeads), top);
    for (int t = 0; t < n; t++) {
        const F w = f_exp(f_sub(f_load(scores + t * kLatentHeads), top));
        f_store(scores + t * kLatentHeads, w);
        sum = f_add(sum, w);
    }
    f_store(tops, top);
    f_store(sums, sum);
    for (int h = 0; h < task.num_heads; h += R) weigh_latents<T, R>(task, scores, h, task.num_heads - h, out);
    for (int h = 0; h < task.num_heads; h++) out[h].max = tops[h], out[h].sum = sums[h];
}

void fold(AttendPartial& into, const AttendPartial& next, int n) {
    const float top = into.max > next.max ? into.max : next.max;
    float scales[16] = {into.max - top, next.max - top};
    f_store(scales, f_exp(f_load(scales)));
    const F a = f_set(scales[0]), b = f_set(scales[1]);
    into.sum = into.sum * scales[0] + next.sum * scales[1];
    into.max = top;
    for (int i = 0; i < n; i += 16)
        f_store(into.values + i, f_add(f_mul(f_load(into.values + i), a), f_mul(f_load(next.values + i), b)));
}
