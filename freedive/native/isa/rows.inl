// Row kernels: quantisation of activations, norms, activation functions, half floats; included by kernels.inl.

constexpr float kNothing = 1e-30f;  // groups with a smaller maximum are quantised to zero: the inverse would overflow

LANES float mean_square(const float* x, int n) {
    F sum = f_set(0.0f);
    int i = 0;
    for (; i + 16 <= n; i += 16) sum = f_fma(f_load(x + i), f_load(x + i), sum);
    float total = sum_lanes(sum);
    for (; i < n; i++) total += x[i] * x[i];
    return total / float(n);
}

// Quantises a group of 32 activations, `a` and `b`. It has low halves if the largest magnitude exceeds `small`.
LANES void quantise_group(F a, F b, float small, QuantisedGroup* out) {
    const float top = f_max_lanes(f_max(f_abs(a), f_abs(b)));
    const bool has_low = top > small;
    const float most = has_low ? kMaxCode : kMaxHigh << kLowBits;  // the largest magnitude is exact in both cases
    const F inverse = f_set(top > kNothing ? most / top : 0.0f);
    const I codes[2] = {i_from_float(f_mul(a, inverse)), i_from_float(f_mul(b, inverse))};
    for (int half = 0; half < 2; half++) {
        const I high = i_shift_right<kLowBits>(i_add(codes[half], i_set(1 << (kLowBits - 1))));
        const I low = has_low ? i_sub(codes[half], i_shift_left<kLowBits>(high)) : i_set(0);
        i_store_bytes(out->high + 16 * half, high);
        i_store_bytes(out->low + 16 * half, low);
        out->high_sum[half] = i_sum_lanes(high);
        out->low_sum[half] = i_sum_lanes(low);
    }
    out->has_low = has_low;
    out->scale = top / most;
    for (int half = 0; half < 2; half++)
        out->scaled_sum[half] = out->scale * float((out->high_sum[half] << kLowBits) + out->low_sum[half]);
}

void quantise(const float* x, int k, float outlier_threshold, QuantisedGroup* out) {
    const float small = outlier_threshold > 0 ? outlier_threshold * __builtin_sqrtf(mean_square(x, k)) : -1.0f;
    for (int g = 0; g < k / kGroup; g++, out++, x += kGroup) quantise_group(f_load(x), f_load(x + 16), small, out);
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
    const float scale = 1.0f / __builtin_sqrtf(mean_square(x, n) + eps);
    const F s = f_set(scale);
    int i = 0;
    for (; i + 16 <= n; i += 16) f_store(out + i, f_mul(f_mul(f_load(x + i), s), f_load(weight + i)));
    for (; i < n; i++) out[i] = x[i] * scale * weight[i];
}

LANES F f_silu(F x) { return f_div(x, f_add(f_set(1.0f), f_exp(f_sub(f_set(0.0f), x)))); }

template <Activation A>
LANES F combine(F gate, F up) {
    if constexpr (A == Activation::SwigluOai)
        return f_mul(f_mul(gate, f_sigmoid(f_mul(gate, f_set(1.702f)))), f_add(up, f_set(1.0f)));
    if constexpr (A == Activation::GeluTanh) {
        const F cube = f_mul(f_mul(gate, gate), gate);
        const F inner = f_mul(f_set(0.7978845608028654f), f_fma(f_set(0.044715f), cube, gate));
        return f_mul(f_mul(f_mul(f_set(0.5f), gate), f_add(f_set(1.0f), f_tanh(inner))), up);
    }
    if constexpr (A == Activation::Sigmoid) return f_mul(f_sigmoid(gate), up);
    return f_mul(f_silu(gate), up);
}

template <Activation A>
LANES void glu_as(float limit, const float* gate, const float* up, int n, float* out) {
    const F most = f_set(limit), least = f_set(-limit);
    for (int i = 0; i < n; i += 16) {
        F g = f_load(gate + i), u = f_load(up + i);
        if (limit != 0) u = f_max(f_min(u, most), least);
        if constexpr (A == Activation::ClampedSilu) {
            f_store(out + i, f_mul(f_min(f_silu(g), most), u));
        } else {
            if (limit != 0) g = f_min(g, most);
            f_store(out + i, combine<A>(g, u));
        }
    }
}

void glu(Glu glu, const float* gate, const float* up, int n, float* out) {
    if (glu.activation == Activation::Silu) return glu_as<Activation::Silu>(glu.limit, gate, up, n, out);
    if (glu.activation == Activation::GeluTanh) return glu_as<Activation::GeluTanh>(glu.limit, gate, up, n, out);
    if (glu.activation == Activation::ClampedSilu) return glu_as<Activation::ClampedSilu>(glu.limit, gate, up, n, out);
    if (glu.activation == Activation::Sigmoid) return glu_as<Activation::Sigmoid>(glu.limit, gate, up, n, out);
    glu_as<Activation::SwigluOai>(glu.limit, gate, up, n, out);
}

void softcap(const float* x, int n, float cap, float* out) {
    for (int i = 0; i < n; i += 16) f_store(out + i, f_softcap(f_load(x + i), cap));
}

void weigh(const float* x, int n, float top, float unit, float* out) {
    const F most = f_set(top), divisor = f_set(unit);
    for (int i = 0; i < n; i += 16) f_store(out + i, f_exp(f_div(f_sub(f_load(x + i), most), divisor)));
}

void peaks(const float* x, int n, float* out) {
    for (int i = 0; i < n; i += kPeakBlock) {
        F top = f_load(x + i);
        for (int j = i + 16; j < i + kPeakBlock; j += 16) top = f_max(f_load(x + j), top);
        out[i / kPeakBlock] = f_max_lanes(top);
    }
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
