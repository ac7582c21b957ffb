// Optimizer updates, each a single pass over the weights; included by kernels.inl.

void adamw(const Updated& at, std::ptrdiff_t begin, int n, const AdamStep& step) {
    const F rest1 = f_set(1 - step.beta1), rest2 = f_set(1 - step.beta2), beta2 = f_set(step.beta2);
    const F shrink = f_set(step.shrink), bias2 = f_set(step.bias2), eps = f_set(step.eps);
    const F keep = f_set(at.keep), rate = f_set(-at.rate);
    float *weights = at.weight + begin, *momenta = at.momentum + begin, *squares = at.square + begin;
    const float* gradients = at.gradient + begin;
    for_vectors(n, [&](int i, int count) {
        const F gradient = f_mul(load_some(gradients + i, count), shrink);
        F momentum = load_some(momenta + i, count), square = load_some(squares + i, count);
        momentum = f_fma(f_sub(gradient, momentum), rest1, momentum);
        square = f_fma(f_mul(gradient, gradient), rest2, f_mul(square, beta2));
        const F spread = f_add(f_sqrt(f_div(square, bias2)), eps);
        const F weight = f_mul(load_some(weights + i, count), keep);
        store_some(momenta + i, momentum, count);
        store_some(squares + i, square, count);
        store_some(weights + i, f_fma(f_div(momentum, spread), rate, weight), count);
    });
}

void nesterov(const Updated& at, std::ptrdiff_t begin, int n, float beta, float shrink) {
    float *gradients = at.gradient + begin, *momenta = at.momentum + begin;
    for_vectors(n, [&](int i, int count) {
        const F gradient = f_mul(load_some(gradients + i, count), f_set(shrink));
        const F momentum = f_fma(load_some(momenta + i, count), f_set(beta), gradient);
        store_some(momenta + i, momentum, count);
        store_some(gradients + i, f_fma(momentum, f_set(beta), gradient), count);
    });
}

void apply_update(const Updated& at, std::ptrdiff_t begin, int n) {
    float* weights = at.weight + begin;
    const float* updates = at.gradient + begin;
    for_vectors(n, [&](int i, int count) {
        const F weight = f_mul(load_some(weights + i, count), f_set(at.keep));
        store_some(weights + i, f_fma(load_some(updates + i, count), f_set(-at.rate), weight), count);
    });
}
