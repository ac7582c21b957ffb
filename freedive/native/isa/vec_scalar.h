// Vectors of 16 lanes as arrays, for any processor. This is the reference that the other levels must match bit for bit.
#include <cmath>
#include <cstdint>
#include <cstring>
#define LANES inline __attribute__((always_inline))

namespace freedive::scalar {
constexpr int kLanes = 16;
struct F {
    float v[kLanes];
};
struct I {
    std::int32_t v[kLanes];
};
struct C {
    std::uint8_t v[4 * kLanes];
};
constexpr int kRowsAtOnce = 0, kLinearRows = 1, kFloatRows = 1, kAttendRows = 1, kAttendColumns = 1;
constexpr int kTileVectors = 1;  // vectors in a row of a float tile
// The prefetch distance in a panel that is read from memory, and the locality argument of __builtin_prefetch.
constexpr int kPrefetchBytes = 4096, kPrefetchLocality = 2;

template <class Out, class Fn>
LANES Out each(Fn fn) {
    Out out;
    for (int i = 0; i < int(sizeof out.v / sizeof out.v[0]); i++) out.v[i] = fn(i);
    return out;
}
LANES F f_set(float v) {
    return each<F>([=](int) { return v; });
}
LANES F f_load(const float* p) {
    return each<F>([=](int i) { return p[i]; });
}
LANES void f_store(float* p, F v) { std::memcpy(p, v.v, sizeof v.v); }
LANES F f_load_half(const std::uint16_t* p) {
    return each<F>([=](int i) { return half_to_float(p[i]); });
}
LANES void f_store_half(std::uint16_t* p, F v) {
    for (int i = 0; i < kLanes; i++) p[i] = float_to_half(v.v[i]);
}
LANES F f_load_bf16(const std::uint16_t* p) {
    return each<F>([=](int i) {
        const std::uint32_t bits = std::uint32_t(p[i]) << 16;
        float v;
        std::memcpy(&v, &bits, 4);
        return v;
    });
}
// e4m3 divided by 2^8: the bits are shifted to those of a half float, whose exponent bias is larger by 8.
LANES F f_load_f8(const std::uint8_t* p) {
    return each<F>([=](int i) { return half_to_float(std::uint16_t((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7)); });
}
LANES F f_add(F a, F b) {
    return each<F>([&](int i) { return a.v[i] + b.v[i]; });
}
LANES F f_sub(F a, F b) {
    return each<F>([&](int i) { return a.v[i] - b.v[i]; });
}
LANES F f_mul(F a, F b) {
    return each<F>([&](int i) { return a.v[i] * b.v[i]; });
}
LANES F f_div(F a, F b) {
    return each<F>([&](int i) { return a.v[i] / b.v[i]; });
}
LANES F f_sqrt(F a) {
    return each<F>([&](int i) { return std::sqrt(a.v[i]); });
}
LANES F f_max(F a, F b) {
    return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
LANES F f_min(F a, F b) {
    return each<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
LANES F f_abs(F a) {
    return each<F>([&](int i) { return std::fabs(a.v[i]); });
}
LANES float f_max_lanes(F a) {
    float top = a.v[0];
    for (int i = 1; i < kLanes; i++) top = a.v[i] > top ? a.v[i] : top;
    return top;
}
LANES F f_fma(F a, F b, F c) {
    return each<F>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
LANES F f_round(F a) {
    return each<F>([&](int i) { return std::nearbyint(a.v[i]); });
}
LANES F f_keep_above(F x, F limit, F v) {
    return each<F>([&](int i) { return x.v[i] >= limit.v[i] ? v.v[i] : 0.0f; });
}
LANES F f_from_int(I v) {
    return each<F>([&](int i) { return float(v.v[i]); });
}
LANES I i_from_codes(const std::uint8_t* p) {
    return each<I>([=](int i) { return std::int32_t(p[i]); });
}
LANES I i_from_signed(const std::int8_t* p) {
    return each<I>([=](int i) { return std::int32_t(p[i]); });
}
LANES I i_from_float(F v) {
    return each<I>([&](int i) { return std::int32_t(std::lrint(v.v[i])); });
}
LANES F f_power_of_two(I n) {
    return each<F>([&](int i) {
        const std::int32_t bits = (n.v[i] + 127) << 23;
        float v;
        std::memcpy(&v, &bits, 4);
        return v;
    });
}
LANES I i_set(std::int32_t v) {
    return each<I>([=](int) { return v; });
}
LANES I i_and(I a, I b) {
    return each<I>([&](int i) { return a.v[i] & b.v[i]; });
}
LANES I i_add(I a, I b) {
    return each<I>([&](int i) { return a.v[i] + b.v[i]; });
}
template <int Bits>
LANES I i_shift_left(I v) {
    return each<I>([&](int i) { return v.v[i] * (1 << Bits); });
}
LANES I i_sub(I a, I b) {
    return each<I>([&](int i) { return a.v[i] - b.v[i]; });
}
template <int Bits>
LANES I i_shift_right(I v) {
    return each<I>([&](int i) { return v.v[i] >> Bits; });
}
LANES std::int32_t i_sum_lanes(I v) {
    std::int32_t sum = 0;
    for (int i = 0; i < kLanes; i++) sum += v.v[i];
    return sum;
}
LANES void i_store_bytes(std::int8_t* p, I v) {
    for (int i = 0; i < kLanes; i++) p[i] = std::int8_t(v.v[i]);
}
LANES C c_load(const std::uint8_t* p) {
    C out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
}
template <int Shift>
LANES C c_bits(C v, std::uint8_t mask) {
    return each<C>([&](int i) { return std::uint8_t((Shift < 0 ? v.v[i] << -Shift : v.v[i] >> Shift) & mask); });
}
LANES C c_or(C a, C b) {
    return each<C>([&](int i) { return std::uint8_t(a.v[i] | b.v[i]); });
}
// table[v], for v below 16.
LANES C c_lookup(C v, const std::uint8_t (&table)[16]) {
    return each<C>([&](int i) { return table[v.v[i]]; });
}
template <int Bits>
LANES I i_dot(I acc, C codes, std::int32_t a) {
    std::int8_t x[4];
    std::memcpy(x, &a, 4);
    return each<I>([&](int i) {
        std::int32_t sum = acc.v[i];
        for (int j = 0; j < 4; j++) sum += codes.v[4 * i + j] * x[j];
        return sum;
    });
}
}  // namespace freedive::scalar
