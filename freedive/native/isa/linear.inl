// Linear layers: products of weight panels and activation rows; included by kernels.inl.

// ---------------------------------------------------------------- linear, quantised

// Adds the products of groups [begin, end) to `out`, or writes them where `begin` is 0. If `streams` is true, the panel
// is read from memory and is prefetched.
template <Format Fmt, int R>
void linear_rows(const std::uint8_t* panel, int begin, int end, const QuantisedGroup* const* x, bool streams,
                 float* out) {
    using T = Quantised<Fmt>;
    Sums<R> sums(out, kPanelRows, begin == 0);
    const QuantisedGroup* a[R];
    for (int r = 0; r < R; r++) a[r] = x[r] + begin;
    const std::uint8_t* span = panel + T::group_offset(begin) - T::span_lines * kLine;
    for (int g = begin; g < end; g++) {
        const std::uint8_t* group = panel + T::group_offset(g);
        const bool first = g % T::span == 0;
        if (first) span = group - T::span_lines * kLine;
        if (streams)
            for (const std::uint8_t* line = first ? span : group; line < group + T::group_bytes; line += kLine)
                prefetch_panel(line);
        add_group<T, R>(span, group, a, sums);
        for (int r = 0; r < R; r++) a[r]++;
    }
    sums.store();
}

template <Format Fmt, int R = kLinearRows>
void linear_block(const std::uint8_t* panel, int begin, int end, const QuantisedGroup* const* x, int rows, bool streams,
                  float* out) {
    if (rows == R) return linear_rows<Fmt, R>(panel, begin, end, x, streams, out);
    if constexpr (R > 1) linear_block<Fmt, R - 1>(panel, begin, end, x, rows, streams, out);
}

// The number of groups of a stretch, a multiple of every span. Rows are divided into blocks of about equal height. All
// blocks use a stretch of the panel while it is in the L1 cache.
constexpr int kStretch = 16;

template <Format Fmt>
void linear_quantised(const std::uint8_t* panel, int k, const QuantisedGroup* const* x, int rows, float* out) {
    const int blocks = (rows + kLinearRows - 1) / kLinearRows, groups = k / kGroup;
    const int stretch = blocks == 1 ? groups : kStretch;
    for (int begin = 0; begin < groups; begin += stretch)
        for (int b = 0; b < blocks; b++) {
            const int first = rows * b / blocks, last = rows * (b + 1) / blocks;
            const int end = begin + stretch < groups ? begin + stretch : groups;
            linear_block<Fmt>(panel, begin, end, x + first, last - first, b == 0, out + first * kPanelRows);
        }
}

// ---------------------------------------------------------------- linear, float

constexpr float kF8Unit = 256.0f;  // f_load_f8 returns values divided by 2^8

template <Format Fmt>
LANES F load_weights(const std::uint8_t* p) {
    if constexpr (Fmt == Format::F32) return f_load((const float*)p);
    if constexpr (Fmt == Format::F16) return f_load_half((const std::uint16_t*)p);
    if constexpr (Fmt == Format::F8G128) return f_load_f8(p);
    return f_load_bf16((const std::uint16_t*)p);
}

// Adds the products of inputs [begin, begin + n) to the accumulators.
template <Format Fmt, int R>
LANES void add_inputs(const std::uint8_t* weights, const float* const* x, int begin, int n, F (&sum)[2][R]) {
    constexpr int tile_bytes = kTileRows * float_bytes(Fmt);
    for (int i = 0; i < n; i++) {
        const F w0 = load_weights<Fmt>(weights), w1 = load_weights<Fmt>(weights + tile_bytes);
        prefetch_panel(weights);
        unroll<R>(EACH(r) {
            const F v = f_set(x[r][begin + i]);
            sum[0][r] = f_fma(w0, v, sum[0][r]);
            sum[1][r] = f_fma(w1, v, sum[1][r]);
        });
        weights += 2 * tile_bytes;
    }
}

template <Format Fmt, int R>
void linear_rows(const std::uint8_t* panel, int k, const float* const* x, float* out) {
    F sum[2][R];
    unroll<R>(EACH(r) { sum[0][r] = sum[1][r] = f_set(0.0f); });
    if constexpr (Fmt == Format::F8G128) {
        for (int i = 0; i < k; i += kF8Block) {
            const int n = k - i < kF8Block ? k - i : kF8Block;
            F part[2][R];
            unroll<R>(EACH(r) { part[0][r] = part[1][r] = f_set(0.0f); });
            add_inputs<Fmt, R>(panel + kF8ScaleBytes, x, i, n, part);
            unroll<2>(EACH(t) {
                const F scale = f_mul(f_load((const float*)panel + t * kTileRows), f_set(kF8Unit));
                unroll<R>(EACH(r) { sum[t][r] = f_fma(part[t][r], scale, sum[t][r]); });
            });
            panel += kF8ScaleBytes + n * kPanelRows;
        }
    } else {
        add_inputs<Fmt, R>(panel, x, 0, k, sum);
    }
    unroll<R>(EACH(r) { unroll<2>(EACH(t) { f_store(out + r * kPanelRows + t * kTileRows, sum[t][r]); }); });
}

template <Format Fmt, int R = kFloatRows>
void linear_block(const std::uint8_t* panel, int k, const float* const* x, int rows, float* out) {
    if (rows == R) return linear_rows<Fmt, R>(panel, k, x, out);
    if constexpr (R > 1) linear_block<Fmt, R - 1>(panel, k, x, rows, out);
}

template <Format Fmt>
void linear_floats(const std::uint8_t* panel, int k, const float* const* x, int rows, float* out) {
    const int blocks = (rows + kFloatRows - 1) / kFloatRows;
    for (int b = 0; b < blocks; b++) {
        const int first = rows * b / blocks, last = rows * (b + 1) / blocks;
        linear_block<Fmt>(panel, k, x + first, last - first, out + first * kPanelRows);
    }
}

template <Format Fmt>
void linear(const std::uint8_t* panel, int k, const void* const* x, int rows, float* out) {
    if constexpr (is_quantised(Fmt))
        linear_quantised<Fmt>(panel, k, (const QuantisedGroup* const*)x, rows, out);
    else
        linear_floats<Fmt>(panel, k, (const float* const*)x, rows, out);
}

template <Format Fmt>
LANES void add_transposed_as(const std::uint8_t* panel, int k, const float* x, float* out) {
    constexpr int tile_bytes = kTileRows * float_bytes(Fmt);
    const F x0 = f_load(x), x1 = f_load(x + kTileRows);
    const auto product = [&](int i) __attribute__((always_inline)) {
        const std::uint8_t* weights = panel + std::size_t(i) * 2 * tile_bytes;
        prefetch_panel(weights);
        return f_fma(load_weights<Fmt>(weights + tile_bytes), x1, f_mul(load_weights<Fmt>(weights), x0));
    };
    int i = 0;
    for (; i + 8 <= k; i += 8) {
        F products[8];
        unroll<8>(EACH(j) { products[j] = product(i + j); });
        f_add_lane_sums(products, out + i);
    }
    for (; i < k; i++) out[i] += sum_lanes(product(i));
}

void add_transposed(Format f, const std::uint8_t* panel, int k, const float* x, float* out) {
    if (f == Format::F32) return add_transposed_as<Format::F32>(panel, k, x, out);
    if (f == Format::F16) return add_transposed_as<Format::F16>(panel, k, x, out);
    add_transposed_as<Format::BF16>(panel, k, x, out);
}
