// Attention to 8-bit keys and values; included by kernels.inl. Queries and attention weights are quantised to 8 bits,
// and the integer products of linear.inl multiply them. Keys have one scale for each token and 32 dimensions. Values
// have one scale for each token, by which the attention weight of the token is multiplied before it is quantised.

constexpr int kMaxHeadGroups = kMaxHeadDim / kGroup;
constexpr float kHighOnly = __builtin_inff();  // a threshold of infinity: no group has low halves

struct alignas(kLine) ScaleLine {
    std::uint16_t bfloats[kPanelRows];
};
constexpr ScaleLine make_ones() {
    ScaleLine line{};
    for (std::uint16_t& one : line.bfloats) one = 0x3f80;
    return line;
}
constexpr ScaleLine kOnes = make_ones();

LANES void ask_for(const std::uint8_t* lines) {
    for (int byte = 0; byte < kLine + CachedCodes::group_bytes; byte += kLine) __builtin_prefetch(lines + byte, 0, 2);
}

struct ScaledCodes {
    const std::uint8_t *scales, *codes;
};
// out[r][32] = the product of a panel and row r. at(i) returns group i of the panel. Rows are Stride groups apart.
template <int Stride, int OutStride, int R, class At>
LANES void multiply_codes(const QuantisedGroup* x, int num_groups, float* out, At&& at) {
    Sums<R> sums(out, OutStride, true);
    const QuantisedGroup* a[R];
    for (int r = 0; r < R; r++) a[r] = x + r * Stride;
    for (int i = 0; i < num_groups; i++) {
        const ScaledCodes group = at(i);
        add_group<CachedCodes, R>(group.scales, group.codes, a, sums);
        for (int r = 0; r < R; r++) a[r]++;
    }
    sums.store();
}

// out[r][token] = the products of queries and the keys of a page. The keys of the next page and the values of this page
// are prefetched.
template <int R>
__attribute__((noinline)) void score_codes(const QuantisedGroup* q, int num_groups, const std::uint8_t* keys,
                                           const std::uint8_t* next, const std::uint8_t* values, float* out) {
    multiply_codes<kMaxHeadGroups, kSplitTokens, R>(q, num_groups, out, [=](int g) {
        const std::size_t at = CachedCodes::group_offset(g), line = at - kLine;
        ask_for(next + line);
        ask_for(values + line);
        return ScaledCodes{keys + line, keys + at};
    });
}

// out[r][column] = the products of attention weights and values, for one panel of columns.
template <int R>
__attribute__((noinline)) void weigh_codes(const QuantisedGroup* weights, int num_pages,
                                           const std::uint8_t* const* pages, int panel, float* out) {
    multiply_codes<kSplitPages, kMaxHeadDim, R>(weights, num_pages, out, [=](int p) {
        const auto* ones = (const std::uint8_t*)&kOnes;
        return ScaledCodes{ones, pages[p] + kLine + panel * CachedCodes::group_bytes};
    });
}

LANES void quantise_query(const float* q, int num_groups, QuantisedGroup* out) {
    for (int g = 0; g < num_groups; g++, q += kGroup) quantise_group(f_load(q), f_load(q + 16), kHighOnly, out + g);
}

// Multiplies the attention weights of a row by the scales of the values and quantises them, one group for each page.
LANES void quantise_weights(const float* weights, const std::uint8_t* const* values, int num_pages,
                            QuantisedGroup* out) {
    for (int p = 0; p < num_pages; p++, weights += kPageTokens) {
        const auto* scales = (const std::uint16_t*)values[p];
        const F a = f_mul(f_load(weights), f_load_bf16(scales));
        const F b = f_mul(f_load(weights + 16), f_load_bf16(scales + 16));
        quantise_group(a, b, kHighOnly, out + p);
    }
}

template <int R = kLinearRows>
void attend_int8_rows(const AttendTask& task, int row, AttendPartial* states) {
    if constexpr (R > 1)
        if (task.num_rows - row < R) return attend_int8_rows<R - 1>(task, row, states);
    const Span seen = seen_pages(task, row, R);
    if (seen.begin >= seen.end) return;
    const int groups = (task.key_dim + kGroup - 1) / kGroup, num_pages = seen.num_pages();
    const int start = task.begin + seen.begin * kPageTokens;
    const std::uint8_t *const *keys = task.keys + seen.begin, *const *values = task.values + seen.begin;
    alignas(64) float scores[R * kSplitTokens], sums[R * kMaxHeadDim];
    QuantisedGroup codes[R * kMaxHeadGroups], weights[R * kSplitPages];
    AttendPartial next[R];
    for (int r = 0; r < R; r++)
        quantise_query((const float*)task.q + (row + r) * kMaxHeadDim, groups, codes + r * kMaxHeadGroups);
    for (int p = 0; p < num_pages; p++)
        score_codes<R>(codes, groups, keys[p], keys[p + 1 < num_pages ? p + 1 : p], values[p],
                       scores + p * kPageTokens);
    for (int r = 0; r < R; r++) {
        float* score = scores + r * kSplitTokens;
        next[r].values = sums + r * kMaxHeadDim;
        softmax_row(score, num_pages * kPageTokens, task.first[row + r] - start, task.last[row + r] - start,
                    task.softcap, next[r]);
        quantise_weights(score, values, num_pages, weights + r * kSplitPages);
    }
    for (int panel = 0; panel < task.value_stride / kPanelRows; panel++)
        weigh_codes<R>(weights, num_pages, values, panel, sums + panel * kPanelRows);
    for (int r = 0; r < R; r++) fold(states[row + r], next[r], task.value_dim);
}

void attend_int8(const AttendTask& task, AttendPartial* states) {
    for (int row = 0; row < task.num_rows; row += kLinearRows) attend_int8_rows(task, row, states);
}
