// Row kernels of training, forward and backward; included by kernels.inl.

// Calls body(first, count) for each full vector of 16 elements, then for the remainder.
template <class Body>
LANES void for_vectors(int n, Body body) {
    int i = 0;
    for (; i + 16 <= n; i += 16) body(i, 16);
    if (i < n) body(i, n - i);
}

void weighted_swiglu(const float* gate, const float* up, float share, int n, float* out) {
    const F factor = f_set(share);
    for_vectors(n, [&](int i, int count) {
        const F g = load_some(gate + i, count);
        store_some(out + i, f_mul(factor, f_mul(f_mul(g, f_sigmoid(g)), load_some(up + i, count))), count);
    });
}

float weighted_swiglu_gradient(const float* gate, const float* up, const float* d, float share, int n, float* d_gate,
                               float* d_up, float* mixed) {
    const F factor = f_set(share), one = f_set(1.0f);
    F sum = f_set(0.0f);
    for_vectors(n, [&](int i, int count) {
        const F g = load_some(gate + i, count), u = load_some(up + i, count), slope = load_some(d + i, count);
        const F sigmoid = f_sigmoid(g), silu = f_mul(g, sigmoid), made = f_mul(silu, u), shared = f_mul(slope, factor);
        sum = f_fma(slope, made, sum);
        store_some(d_up + i, f_mul(shared, silu), count);
        store_some(d_gate + i, f_mul(f_mul(shared, u), f_fma(silu, f_sub(one, sigmoid), sigmoid)), count);
        store_some(mixed + i, f_mul(factor, made), count);
    });
    return sum_lanes(sum);
}

// Pads x from n elements to a multiple of 16 with -infinity, whose exp is 0. Returns the padded length.
LANES int whole_vectors(float* x, int n) {
    const int whole = (n + 15) / 16 * 16;
    for (int i = n; i < whole; i++) x[i] = -__builtin_inff();
    return whole;
}

float softmax(float* x, int n, int width, float scale, float share) {
    const int whole = whole_vectors(x, n);
    F top = f_load(x);
    for (int i = 16; i < whole; i += 16) top = f_max(top, f_load(x + i));
    const float most = f_max_lanes(top) * scale;
    F sum = f_set(0.0f);
    for (int i = 0; i < whole; i += 16) {
        const F e = f_exp(f_fma(f_load(x + i), f_set(scale), f_set(-most)));
        f_store(x + i, e);
        sum = f_add(sum, e);
    }
    const float total = sum_lanes(sum);
    for (int i = 0; i < whole; i += 16) f_store(x + i, f_mul(f_load(x + i), f_set(share / total)));
    for (int i = whole; i < width; i++) x[i] = 0.0f;
    return most + __builtin_logf(total);
}

void softmax_gradient(float* scores, float* d, int n, int width, float scale, float log_sum, float dot) {
    const int whole = whole_vectors(scores, n);
    const F least = f_set(-log_sum), mean = f_set(dot), factor = f_set(scale);
    for (int i = 0; i < whole; i += 16) {
        const F part = f_exp(f_fma(f_load(scores + i), factor, least));
        f_store(scores + i, part);
        f_store(d + i, f_mul(f_mul(part, f_sub(f_load(d + i), mean)), factor));
    }
    for (int i = n; i < width; i++) scores[i] = d[i] = 0.0f;
}

float dot(const float* x, const float* y, int n) {
    F sum = f_set(0.0f);
    for_vectors(n, [&](int i, int count) { sum = f_fma(load_some(x + i, count), load_some(y + i, count), sum); });
    return sum_lanes(sum);
}

// With normed = x * scale: d_x = scale * (weight * d - normed * mean(normed * weight * d)).
void rms_norm_gradient(const float* x, const float* weight, const float* d, int n, float eps, float* d_x,
                       float* d_weight) {
    const float scale = 1.0f / __builtin_sqrtf(mean_square(x, n) + eps);
    const F factor = f_set(scale);
    F sum = f_set(0.0f);
    for_vectors(n, [&](int i, int count) {
        const F slope = load_some(d + i, count), normed = f_mul(load_some(x + i, count), factor);
        sum = f_fma(f_mul(slope, load_some(weight + i, count)), normed, sum);
        store_some(d_weight + i, f_fma(slope, normed, load_some(d_weight + i, count)), count);
    });
    const F mean = f_set(sum_lanes(sum) / float(-n));
    for_vectors(n, [&](int i, int count) {
        const F slope = f_mul(load_some(d + i, count), load_some(weight + i, count));
        const F normed = f_mul(load_some(x + i, count), factor);
        store_some(d_x + i, f_mul(factor, f_fma(normed, mean, slope)), count);
    });
}

LANES void turn_pairs(const float* x, const Angles& by, float sign, int first, int step, int second, float* y) {
    for (int i = 0; i < by.pairs; i++) {
        const float a = x[first + i * step], b = x[second + i * step], sin = sign * by.sin[i];
        y[first + i * step] = a * by.cos[i] - b * sin;
        y[second + i * step] = b * by.cos[i] + a * sin;
    }
}
LANES void turn(const float* __restrict x, const Angles& by, float sign, float* __restrict y) {
    if (by.neighbours)
        turn_pairs(x, by, sign, 0, 2, 1, y);
    else
        turn_pairs(x, by, sign, 0, 1, by.pairs, y);
}

void concat_rope(const float* plain, int num_plain, const float* last, const Angles& by, float* y) {
    for_vectors(num_plain, [&](int i, int count) { store_some(y + i, load_some(plain + i, count), count); });
    turn(last, by, 1.0f, y + num_plain);
}

void split_rope(const float* y, int num_plain, const Angles& by, float* plain, float* last) {
    for_vectors(num_plain, [&](int i, int count) { store_some(plain + i, load_some(y + i, count), count); });
    turn(y + num_plain, by, -1.0f, last);
}
