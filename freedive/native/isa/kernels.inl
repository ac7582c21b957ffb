// The kernels, written once over 16 lanes; each level includes this file inside its own namespace.
// Every row's result is the same bit for bit whatever rows it is computed with: integer sums inside a group are exact
// and float sums run over groups (or inputs, keys) in order. No standard library templates here: their instances could
// be shared with code that must run on lesser machines.

constexpr int kPrefetchBytes = 4096;  // how far ahead of a streamed panel to ask for lines

LANES float sum_lanes(F v) {
    float x[16];
    f_store(x, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}
// exp to about 1 ulp (Cephes expf); exactly 0 below -87.
LANES F f_exp(F x) {
    const F clamped = f_max(f_min(x, f_set(88.0f)), f_set(-87.0f));
    const F n = f_round(f_mul(clamped, f_set(1.44269504088896341f)));
    F r = f_fma(n, f_set(-0.693359375f), clamped);
    r = f_fma(n, f_set(2.12194440e-4f), r);
    F p = f_set(1.9875691500e-4f);
    constexpr float rest[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    for (const float c : rest) p = f_fma(p, r, f_set(c));
    p = f_add(f_fma(p, f_mul(r, r), r), f_set(1.0f));
    return f_keep_above(x, f_set(-87.0f), f_mul(p, f_power_of_two(i_from_float(n))));
}
LANES F f_sigmoid(F x) { return f_div(f_set(1.0f), f_add(f_set(1.0f), f_exp(f_sub(f_set(0.0f), x)))); }
LANES F f_tanh(F x) { return f_sub(f_set(1.0f), f_div(f_set(2.0f), f_add(f_exp(f_add(x, x)), f_set(1.0f)))); }

// ---------------------------------------------------------------- linear, quantised

template <int Width, int Quad>
LANES C load_plane(const std::uint8_t* lines) {
    constexpr int quads = 8 / Width;  // in a line
    const C line = c_load(lines + Quad / quads * kLine);
    if constexpr (Width == 8) return line;
    return c_bits<Width*(Quad % quads)>(line, (1 << Width) - 1);
}
template <class T, int Quad>
LANES C load_codes(const std::uint8_t* tile) {
    C c = load_plane<T::low_bits, Quad>(tile);
    if constexpr (T::high_bits > 0)
        c = c_or(c, c_shift_left<T::low_bits>(load_plane<T::high_bits, Quad>(tile + T::low_bits * kLine)));
    if constexpr (T::code_bits != T::bits) c = c_lookup(c, T::table);
    return c;
}

LANES std::int32_t four_bytes(const std::int8_t* p) {
    std::int32_t v;
    __builtin_memcpy(&v, p, 4);
    return v;
}

// Adds the products of quads [First, Last) of both tiles with one part of the activations, high or low: each activation
// that is spread over the lanes serves two.
template <class T, int First, int Last, int R>
LANES void dot_quads(const std::uint8_t* tile0, const std::uint8_t* tile1, const std::int8_t* const* x,
                     I (&acc)[2][R]) {
    if constexpr (First < Last) {
        const C codes0 = load_codes<T, First>(tile0), codes1 = load_codes<T, First>(tile1);
        for (int r = 0; r < R; r++) {
            const std::int32_t quad = four_bytes(x[r] + 4 * First);
            acc[0][r] = i_dot<T::code_bits>(acc[0][r], codes0, quad);
            acc[1][r] = i_dot<T::code_bits>(acc[1][r], codes1, quad);
        }
        dot_quads<T, First + 1, Last, R>(tile0, tile1, x, acc);
    }
}

// Scales and minima of one tile of a group; [1] are the second half group's where halves differ.
template <class T>
struct TileScales {
    F scale[2], minimum[2];
    LANES TileScales(const std::uint8_t* span, const std::uint8_t* group, int tile) {
        const int at = tile * kTileRows;
        const auto* first = (const std::uint16_t*)span + at;
        const auto* second = (const std::uint16_t*)(span + kLine) + at;
        const std::uint8_t *low = group + at, *high = group + kPanelRows + at;
        if constexpr (T::scales == Scales::Bf16) {
            scale[0] = f_load_bf16(first);
        } else if constexpr (!T::super) {
            scale[0] = f_load_half(first);
            if constexpr (T::scales == Scales::HalfMin) minimum[0] = f_load_half(second);
            if constexpr (T::scales == Scales::HalfZero)
                minimum[0] = f_sub(f_set(0.0f), f_mul(scale[0], f_load_half(second)));
        } else {
            const F d = f_load_half(first);
            if constexpr (T::scales == Scales::SuperMin) {
                scale[0] = f_mul(d, f_from_int(i_from_codes(low)));
                minimum[0] = f_mul(f_load_half(second), f_from_int(i_from_codes(high)));
            } else if constexpr (T::scales == Scales::SuperHalves) {
                scale[0] = f_mul(d, f_from_int(i_from_signed((const std::int8_t*)low)));
                scale[1] = f_mul(d, f_from_int(i_from_signed((const std::int8_t*)high)));
            } else {
                const F m = f_load_half(second);
                const I both[2] = {i_from_codes(low), i_from_codes(high)};
                for (int half = 0; half < 2; half++) {
                    scale[half] = f_mul(d, f_from_int(i_and(both[half], i_set(15))));
                    minimum[half] = f_mul(m, f_from_int(i_shift_right<4>(both[half])));
                }
            }
        }
    }
};

// Adds the products of quads [First, Last) of a group, whose scales are those of half group `Half`.
template <class T, int R, int First, int Last, int Half>
LANES void add_quads(const std::uint8_t* codes, const TileScales<T> (&scales)[2], const QuantisedGroup* const* a,
                     F (&sum)[2][R]) {
    const std::uint8_t *tile0 = codes, *tile1 = codes + kLine * T::tile_lines;
    const std::int8_t *high[R], *low[R];
    I acc[2][R];
    for (int r = 0; r < R; r++) {
        high[r] = a[r]->high;
        low[r] = a[r]->low;
        acc[0][r] = acc[1][r] = i_set(0);
    }
    dot_quads<T, First, Last, R>(tile0, tile1, high, acc);
    for (int r = 0; r < R; r++) {
        const std::int32_t* sums = a[r]->half_sum;
        const I zero = i_set(-T::zero * (Last - First == kQuads ? sums[0] + sums[1] : sums[Half]));
        for (int t = 0; t < 2; t++) acc[t][r] = i_add(i_shift_left<kLowBits>(acc[t][r]), zero);
    }
    dot_quads<T, First, Last, R>(tile0, tile1, low, acc);
    for (int r = 0; r < R; r++) {
        const F d = f_set(a[r]->scale);
        for (int t = 0; t < 2; t++)
            sum[t][r] = f_fma(f_from_int(acc[t][r]), f_mul(scales[t].scale[Half], d), sum[t][r]);
    }
}

template <class T, int R>
LANES void add_group(const std::uint8_t* span, const std::uint8_t* group, const QuantisedGroup* const* a,
                     F (&sum)[2][R]) {
    const std::uint8_t* codes = group + kLine * T::group_lines;
    const TileScales<T> scales[2] = {{span, group, 0}, {span, group, 1}};
    if constexpr (T::halves) {
        add_quads<T, R, 0, kQuads / 2, 0>(codes, scales, a, sum);
        add_quads<T, R, kQuads / 2, kQuads, 1>(codes, scales, a, sum);
    } else {
        add_quads<T, R, 0, kQuads, 0>(codes, scales, a, sum);
    }
    if constexpr (T::minima)
        for (int r = 0; r < R; r++)
            for (int half = 0; half < (T::halves ? 2 : 1); half++) {
                const F d = f_set(T::halves ? a[r]->scale * float(a[r]->half_sum[half]) : a[r]->scaled_sum);
                for (int t = 0; t < 2; t++) sum[t][r] = f_fma(scales[t].minimum[half], d, sum[t][r]);
            }
}

template <int R>
LANES void store_products(F (&sum)[2][R], float* out) {
    for (int r = 0; r < R; r++) {
        f_store(out + r * kPanelRows, sum[0][r]);
        f_store(out + r * kPanelRows + kTileRows, sum[1][r]);
    }
}

template <Format Fmt, int R>
LANES void linear_rows(const std::uint8_t* panel, int k, const QuantisedGroup* const* x, float* out) {
    using T = Quantised<Fmt>;
    F sum[2][R];
    const QuantisedGroup* a[R];
    for (int r = 0; r < R; r++) {
        sum[0][r] = sum[1][r] = f_set(0.0f);
        a[r] = x[r];
    }
    const std::uint8_t* span = panel;
    for (int g = 0; g < k / kGroup; g++) {
        const std::uint8_t* group = panel + T::group_offset(g);
        const bool first = g % T::span == 0;
        if (first) span = group - T::span_lines * kLine;
        if constexpr (R == 1)
            for (const std::uint8_t* line = first ? span : group; line < group + T::group_bytes; line += kLine)
                __builtin_prefetch(line + kPrefetchBytes, 0, 2);
        add_group<T, R>(span, group, a, sum);
        for (int r = 0; r < R; r++) a[r]++;
    }
    store_products<R>(sum, out);
}

// ---------------------------------------------------------------- linear, float

constexpr float kF8Unit = 256.0f;  // f_load_f8 gives values in units of 2^8

template <Format Fmt>
LANES F load_weights(const std::uint8_t* p) {
    if constexpr (Fmt == Format::F32) return f_load((const float*)p);
    if constexpr (Fmt == Format::F16) return f_load_half((const std::uint16_t*)p);
    if constexpr (Fmt == Format::F8G128) return f_load_f8(p);
    return f_load_bf16((const std::uint16_t*)p);
}

// Adds the products of inputs [begin, begin + n).
template <Format Fmt, int R>
LANES void add_inputs(const std::uint8_t* weights, const float* const* x, int begin, int n, F (&sum)[2][R]) {
    constexpr int tile_bytes = kTileRows * float_bytes(Fmt);
    for (int i = 0; i < n; i++) {
        const F w0 = load_weights<Fmt>(weights), w1 = load_weights<Fmt>(weights + tile_bytes);
        __builtin_prefetch(weights + kPrefetchBytes, 0, 2);
        for (int r = 0; r < R; r++) {
            const F v = f_set(x[r][begin + i]);
            sum[0][r] = f_fma(w0, v, sum[0][r]);
            sum[1][r] = f_fma(w1, v, sum[1][r]);
        }
        weights += 2 * tile_bytes;
    }
}

template <Format Fmt, int R>
LANES void linear_rows(const std::uint8_t* panel, int k, const float* const* x, float* out) {
    F sum[2][R];
    for (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = f_set(0.0f);
    if constexpr (Fmt == Format::F8G128) {
        for (int i = 0; i < k; i += kF8Block) {
            const int n = k - i < kF8Block ? k - i : kF8Block;
            F part[2][R];
            for (int r = 0; r < R; r++) part[0][r] = part[1][r] = f_set(0.0f);
            add_inputs<Fmt, R>(panel + kF8ScaleBytes, x, i, n, part);
            for (int t = 0; t < 2; t++) {
                const F scale = f_mul(f_load((const float*)panel + t * kTileRows), f_set(kF8Unit));
                for (int r = 0; r < R; r++) sum[t][r] = f_fma(part[t][r], scale, sum[t][r]);
            }
            panel += kF8ScaleBytes + n * kPanelRows;
        }
    } else {
        add_inputs<Fmt, R>(panel, x, 0, k, sum);
    }
    store_products<R>(sum, out);
}

template <Format Fmt, class X, int R = kLinearRows>
LANES void linear_block(const std::uint8_t* panel, int k, const X* const* x, int rows, float* out) {
    if (rows == R) return linear_rows<Fmt, R>(panel, k, x, out);
    if constexpr (R > 1) linear_block<Fmt, X, R - 1>(panel, k, x, rows, out);
}

// Rows in blocks of about equal height.
template <Format Fmt>
void linear(const std::uint8_t* panel, int k, const void* const* x, int rows, float* out) {
    using X = std::conditional_t<is_quantised(Fmt), QuantisedGroup, float>;
    const int blocks = (rows + kLinearRows - 1) / kLinearRows;
    for (int b = 0; b < blocks; b++) {
        const int first = rows * b / blocks, last = rows * (b + 1) / blocks;
        linear_block<Fmt>(panel, k, (const X* const*)x + first, last - first, out + first * kPanelRows);
    }
}

template <Format Fmt>
LANES void add_transposed_as(const std::uint8_t* panel, int k, const float* x, float* out) {
    constexpr int tile_bytes = kTileRows * float_bytes(Fmt);
    const F x0 = f_load(x), x1 = f_load(x + kTileRows);
    for (int i = 0; i < k; i++, panel += 2 * tile_bytes) {
        const F products = f_mul(load_weights<Fmt>(panel), x0);
        out[i] += sum_lanes(f_fma(load_weights<Fmt>(panel + tile_bytes), x1, products));
    }
}

void add_transposed(Format f, const std::uint8_t* panel, int k, const float* x, float* out) {
    if (f == Format::F32) return add_transposed_as<Format::F32>(panel, k, x, out);
    if (f == Format::F16) return add_transposed_as<Format::F16>(panel, k, x, out);
    add_transposed_as<Format::BF16>(panel, k, x, out);
}

// ---------------------------------------------------------------- rows

constexpr float kNothing = 1e-30f;  // a group of smaller activations counts as zero: its inverse would overflow

void quantise(const float* x, int k, QuantisedGroup* out) {
    for (int g = 0; g < k / kGroup; g++, out++, x += kGroup) {
        const F a = f_load(x), b = f_load(x + 16);
        const float top = f_max_lanes(f_max(f_abs(a), f_abs(b)));
        const F inverse = f_set(top > kNothing ? float(kMaxCode) / top : 0.0f);
        const I codes[2] = {i_from_float(f_mul(a, inverse)), i_from_float(f_mul(b, inverse))};
        for (int half = 0; half < 2; half++) {
            const I high = i_shift_right<kLowBits>(i_add(codes[half], i_set(1 << (kLowBits - 1))));
            i_store_bytes(out->high + 16 * half, high);
            i_store_bytes(out->low + 16 * half, i_sub(codes[half], i_shift_left<kLowBits>(high)));
            out->half_sum[half] = i_sum_lanes(codes[half]);
        }
        out->scale = top / float(kMaxCode);
        out->scaled_sum = out->scale * float(out->half_sum[0] + out->half_sum[1]);
    }
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
    F sum = f_set(0.0f);
    int i = 0;
    for (; i + 16 <= n; i += 16) sum = f_fma(f_load(x + i), f_load(x + i), sum);
    float total = sum_lanes(sum);
    for (; i < n; i++) total += x[i] * x[i];
    const float scale = 1.0f / __builtin_sqrtf(total / float(n) + eps);
    const F s = f_set(scale);
    for (i = 0; i + 16 <= n; i += 16) f_store(out + i, f_mul(f_mul(f_load(x + i), s), f_load(weight + i)));
    for (; i < n; i++) out[i] = x[i] * scale * weight[i];
}

template <Activation A>
LANES F combine(F gate, F up) {
    if constexpr (A == Activation::SwigluOai)
        return f_mul(f_mul(gate, f_sigmoid(f_mul(gate, f_set(1.702f)))), f_add(up, f_set(1.0f)));
    if constexpr (A == Activation::GeluTanh) {
        const F cube = f_mul(f_mul(gate, gate), gate);
        const F inner = f_mul(f_set(0.7978845608028654f), f_fma(f_set(0.044715f), cube, gate));
        return f_mul(f_mul(f_mul(f_set(0.5f), gate), f_add(f_set(1.0f), f_tanh(inner))), up);
    }
    return f_mul(f_div(gate, f_add(f_set(1.0f), f_exp(f_sub(f_set(0.0f), gate)))), up);
}

template <Activation A>
LANES void glu_as(float limit, const float* gate, const float* up, int n, float* out) {
    const F most = f_set(limit), least = f_set(-limit);
    for (int i = 0; i < n; i += 16) {
        F g = f_load(gate + i), u = f_load(up + i);
        if (limit != 0) g = f_min(g, most), u = f_max(f_min(u, most), least);
        f_store(out + i, combine<A>(g, u));
    }
}

void glu(Glu glu, const float* gate, const float* up, int n, float* out) {
    if (glu.activation == Activation::Silu) return glu_as<Activation::Silu>(glu.limit, gate, up, n, out);
    if (glu.activation == Activation::GeluTanh) return glu_as<Activation::GeluTanh>(glu.limit, gate, up, n, out);
    glu_as<Activation::SwigluOai>(glu.limit, gate, up, n, out);
}

LANES F f_softcap(F x, float cap) { return f_mul(f_tanh(f_div(x, f_set(cap))), f_set(cap)); }

void softcap(const float* x, int n, float cap, float* out) {
    for (int i = 0; i < n; i += 16) f_store(out + i, f_softcap(f_load(x + i), cap));
}

void to_half(const float* x, int n, std::uint16_t* out) {
    const F limit = f_set(65504.0f), negative = f_set(-65504.0f);
    float rest[16] = {};
    std::uint16_t halves[16];
    int i = 0;
    for (; i + 16 <= n; i += 16) f_store_half(out + i, f_max(f_min(f_load(x + i), limit), negative));
    if (i == n) return;
    for (int j = i; j < n; j++) rest[j - i] = x[j];
    f_store_half(halves, f_max(f_min(f_load(rest), limit), negative));
    for (int j = i; j < n; j++) out[j] = halves[j - i];
}

void from_half(const std::uint16_t* x, int n, float* out) {
    for (int i = 0; i < n; i += 16) f_store(out + i, f_load_half(x + i));
}

// ---------------------------------------------------------------- attention

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

template <int Fmt = 0>
constexpr void fill_linear(Kernels& kernels) {
    kernels.linear[Fmt] = linear<Format(Fmt)>;
    if constexpr (Fmt + 1 < kNumFormats) fill_linear<Fmt + 1>(kernels);
}
constexpr Kernels table(const char* name) {
    Kernels kernels{name,
                    kAttendRows,
                    {},
                    add_transposed,
                    quantise,
                    rms_norm,
                    glu,
                    softcap,
                    to_half,
                    from_half,
                    attend<float>,
                    attend<std::uint16_t>,
                    attend_latent<float>,
                    attend_latent<std::uint16_t>,
                    fold};
    fill_linear(kernels);
    return kernels;
}
