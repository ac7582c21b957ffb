// Attention to keys and values of 8 bits, as products of panels (linear.inl) and activations of 16 bits; included by
// kernels.inl. Scores have their scales by token and 32 dimensions. The values' scales, by token, go into the weights.

using CachedCodes = Quantised<Format::Q8_0>;
constexpr int kMaxHeadGroups = kMaxHeadDim / kGroup;

struct alignas(kLine) ScaleLine {
    std::uint16_t halves[kPanelRows];
};
constexpr ScaleLine make_ones() {
    ScaleLine line{};
    for (std::uint16_t& half : line.halves) half = 0x3c00;
    return line;
}
constexpr ScaleLine kOnes = make_ones();

// out[r][column] of a page's 32 tokens = query r times their keys; meanwhile asks for `after`.
template <int R>
__attribute__((noinline)) void score_codes(const QuantisedGroup* q, const std::uint8_t* keys, int num_groups,
                                           const std::uint8_t* after, float* out) {
    F sum[2][R];
    const QuantisedGroup* a[R];
    for (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = f_set(0.0f), a[r] = q + r * kMaxHeadGroups;
    for (int g = 0; g < num_groups; g++) {
        const std::uint8_t* group = keys + CachedCodes::group_offset(g);
        for (int byte = 0; byte < CachedCodes::group_bytes + kLine; byte += kLine)
            __builtin_prefetch(group - kLine + byte + (after - keys), 0, 2);
        add_group<CachedCodes, R>(group - kLine, group, a, sum);
        for (int r = 0; r < R; r++) a[r]++;
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < 2; t++) f_store(out + r * kSplitTokens + t * kTileRows, sum[t][r]);
}

// out[r][column] = weights of tokens times one panel of their values, over pages.
template <int R>
__attribute__((noinline)) void weigh_codes(const QuantisedGroup* weights, const std::uint8_t* const* pages,
                                           int num_pages, int panel, float* out) {
    F sum[2][R];
    const QuantisedGroup* a[R];
    for (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = f_set(0.0f), a[r] = weights + r * kSplitPages;
    for (int p = 0; p < num_pages; p++) {
        const std::uint8_t* group = pages[p] + kLine + panel * CachedCodes::group_bytes;
        add_group<CachedCodes, R>((const std::uint8_t*)&kOnes, group, a, sum);
        for (int r = 0; r < R; r++) a[r]++;
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < 2; t++) f_store(out + r * kMaxHeadDim + panel * kPanelRows + t * kTileRows, sum[t][r]);
}

// Weights times the scales of their tokens' values, as codes: a group for each page.
LANES void quantise_weights(const std::uint8_t* const* pages, int num_pages, float* weights, QuantisedGroup* out) {
    for (int p = 0; p < num_pages; p++)
        for (int t = p * kPageTokens; t < (p + 1) * kPageTokens; t += 16) {
            const F scales = f_load_half((const std::uint16_t*)pages[p] + t % kPageTokens);
            f_store(weights + t, f_mul(f_load(weights + t), scales));
        }
    quantise(weights, num_pages * kPageTokens, 0, out);
}

template <int R = kLinearRows>
void attend_int8_rows(const AttendTask& task, int row, AttendPartial* states) {
    if constexpr (R > 1)
        if (task.num_rows - row < R) return attend_int8_rows<R - 1>(task, row, states);
    const Span seen = seen_pages(task, row, R);
    if (seen.begin >= seen.end) return;
    const int groups = (task.key_dim + kGroup - 1) / kGroup, begin = seen.begin * kPageTokens;
    const int num_tokens = seen.num_pages() * kPageTokens, start = task.begin + begin;
    alignas(64) float scores[R * kSplitTokens], values[R * kMaxHeadDim];
    QuantisedGroup codes[R * kMaxHeadGroups];  // of queries, then of weights
    for (int r = 0; r < R; r++) quantise(task.q + (row + r) * kMaxHeadDim, groups * kGroup, 0, codes + r * kMaxHeadGroups);
    for (int p = seen.begin; p < seen.end; p++)
        score_codes<R>(codes, task.keys[p], groups, p + 1 < seen.end ? task.keys[p + 1] : task.values[seen.begin],
                       scores + p * kPageTokens);
    AttendPartial next[R];
    const std::uint8_t* const* pages = task.values + seen.begin;
    for (int r = 0; r < R; r++) {
        float* weights = scores + r * kSplitTokens + begin;
        next[r].values = values + r * kMaxHeadDim;
        softmax_row(weights, num_tokens, task.first[row + r] - start, task.last[row + r] - start, task.softcap, next[r]);
        quantise_weights(pages, seen.num_pages(), weights, codes + r * kSplitPages);
    }
    for (int panel = 0; panel < task.value_stride / kPanelRows; panel++)
        weigh_codes<R>(codes, pages, seen.num_pages(), panel, values);
    for (int r = 0; r < R; r++) fold(states[row + r], next[r], task.value_dim);
}

void attend_int8(const AttendTask& task, AttendPartial* states) {
    for (int row = 0; row < task.num_rows; row += kLinearRows) attend_int8_rows(task, row, states);
}
