// The gated delta rule, token by token; included by kernels.inl. One pass over the state applies the change of a token
// and computes its result, then decays the state for the next token and computes the product with its key. So the state
// is read and written once for each token, and bits do not depend on where a run of tokens begins or ends.

constexpr int kDeltaVectors = kDeltaColumns / 16;

// Adds the change of a token to each row of the state and sums `read`, the product with its query; then decays the row
// for the next token and sums `found`, the product with its key.
template <bool Changes, bool HasNext, bool ByChannel>
LANES void delta_pass(float* state, int key_dim, const F (&change)[kDeltaVectors], const float* k, const float* q,
                      const float* next_k, const float* next_decay, F (&read)[kDeltaVectors],
                      F (&found)[kDeltaVectors]) {
    for (int c = 0; c < kDeltaVectors; c++) read[c] = found[c] = f_set(0.0f);
    const F one_decay = f_set(HasNext ? next_decay[0] : 1.0f);
    for (int i = 0; i < key_dim; i++, state += kDeltaColumns) {
        F row[kDeltaVectors];
        for (int c = 0; c < kDeltaVectors; c++) row[c] = f_load(state + 16 * c);
        if constexpr (Changes) {
            const F key = f_set(k[i]), query = f_set(q[i]);
            for (int c = 0; c < kDeltaVectors; c++) {
                row[c] = f_fma(change[c], key, row[c]);
                read[c] = f_fma(row[c], query, read[c]);
            }
        }
        if constexpr (HasNext) {
            const F key = f_set(next_k[i]), decay = ByChannel ? f_set(next_decay[i]) : one_decay;
            for (int c = 0; c < kDeltaVectors; c++) {
                row[c] = f_mul(row[c], decay);
                found[c] = f_fma(row[c], key, found[c]);
            }
        }
        for (int c = 0; c < kDeltaVectors; c++) f_store(state + 16 * c, row[c]);
    }
}

LANES void load_columns(const float* from, int count, F (&to)[kDeltaVectors]) {
    alignas(64) float all[kDeltaColumns] = {};
    for (int i = 0; count < kDeltaColumns && i < count; i++) all[i] = from[i];
    for (int c = 0; c < kDeltaVectors; c++) to[c] = f_load((count < kDeltaColumns ? all : from) + 16 * c);
}

LANES void store_columns(const F (&from)[kDeltaVectors], int count, float* to) {
    alignas(64) float all[kDeltaColumns];
    for (int c = 0; c < kDeltaVectors; c++) f_store((count < kDeltaColumns ? all : to) + 16 * c, from[c]);
    for (int i = 0; count < kDeltaColumns && i < count; i++) to[i] = all[i];
}

template <bool ByChannel>
void delta_tokens(const DeltaTask& task, float* state) {
    F change[kDeltaVectors] = {}, read[kDeltaVectors], found[kDeltaVectors];
    delta_pass<false, true, ByChannel>(state, task.key_dim, change, nullptr, nullptr, task.k.row(0), task.decay.row(0),
                                       read, found);
    for (int t = 0; t < task.num_tokens; t++) {
        const F beta = f_set(task.beta.row(t)[0]);
        load_columns(task.v.row(t), task.num_columns, change);
        for (int c = 0; c < kDeltaVectors; c++) change[c] = f_mul(beta, f_sub(change[c], found[c]));
        if (t + 1 < task.num_tokens)
            delta_pass<true, true, ByChannel>(state, task.key_dim, change, task.k.row(t), task.q.row(t),
                                              task.k.row(t + 1), task.decay.row(t + 1), read, found);
        else
            delta_pass<true, false, ByChannel>(state, task.key_dim, change, task.k.row(t), task.q.row(t), nullptr,
                                               nullptr, read, found);
        if (task.out) store_columns(read, task.num_columns, task.out + t * task.out_stride);
    }
}

void delta_rule(const DeltaTask& task, float* state) {
    task.by_channel ? delta_tokens<true>(task, state) : delta_tokens<false>(task, state);
}

// log(1 + exp(x)). Of y = exp(-|x|), which is at most 1, log(1 + y) is 2 artanh(y / (2 + y)), by its series.
LANES F f_softplus(F x) {
    const F y = f_exp(f_sub(f_set(0.0f), f_abs(x)));
    const F z = f_div(y, f_add(y, f_set(2.0f))), square = f_mul(z, z);
    F sum = f_set(1.0f / 15);
    for (int odd = 13; odd > 0; odd -= 2) sum = f_fma(sum, square, f_set(1.0f / float(odd)));
    return f_fma(f_add(z, z), sum, f_max(x, f_set(0.0f)));
}

void decays(const DecayGate& gate, const float* x, int n, float* out) {
    for (int i = 0; i < n; i += 16) {
        const F biased = f_add(f_load(x + i), f_load(gate.bias + i)), rate = f_load(gate.rate + i);
        const F logs = gate.bound != 0 ? f_mul(f_set(gate.bound), f_sigmoid(f_mul(rate, biased)))
                                       : f_mul(f_sub(f_set(0.0f), rate), f_softplus(biased));
        f_store(out + i, f_exp(logs));
    }
}
