// What all kinds of attention to floats and half floats share: softmax over the scores of a split, and merging splits.

LANES F load_cached(const float* p) { return f_load(p); }
LANES F load_cached(const std::uint16_t* p) { return f_load_half(p); }

// Replaces n scores by exp(score - max). Only keys [from, to) are visible; the weights of the others become 0.
LANES void softmax_row(float* scores, int n, int from, int to, float cap, AttendPartial& out) {
    for (int i = 0; cap != 0 && i < n; i += 16) f_store(scores + i, f_softcap(f_load(scores + i), cap));
    for (int t = 0; t < n && t < from; t++) scores[t] = -__builtin_inff();
    for (int t = to < 0 ? 0 : to; t < n; t++) scores[t] = -__builtin_inff();
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

// Pages [begin, end) of a split: those with keys that are visible to at least one row of a block.
struct Span {
    int begin, end;
    int num_pages() const { return end - begin; }
};
LANES Span seen_pages(const AttendTask& task, int row, int num_rows) {
    const int first = task.first[row] - task.begin, last = task.last[row + num_rows - 1] - task.begin;
    const int end = last < kSplitTokens ? (last + kPageTokens - 1) / kPageTokens : kSplitPages;
    return {first > 0 ? first / kPageTokens : 0, end};
}
