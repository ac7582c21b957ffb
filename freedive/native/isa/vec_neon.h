// Vectors of 16 lanes in four registers, for aarch64 with the dot product extension.
#include <arm_neon.h>

#include <cstdint>
#define LANES inline __attribute__((always_inline))

namespace freedive::neon {
struct F {
    float32x4_t v[4];
};
struct I {
    int32x4_t v[4];
};
struct C {
    uint8x16_t v[4];
};
constexpr int kRowsAtOnce = 0, kLinearRows = 4, kFloatRows = 4, kAttendRows = 4, kAttendColumns = 1;
constexpr int kTileVectors = 1;  // vectors in a row of a float tile
// The prefetch distance in a panel that is read from memory, and the locality argument of __builtin_prefetch.
constexpr int kPrefetchBytes = 4096, kPrefetchLocality = 2;

template <class Out, class Fn>
LANES Out each(Fn fn) {
    return {{fn(0), fn(1), fn(2), fn(3)}};
}
LANES F f_set(float v) {
    return each<F>([=](int) { return vdupq_n_f32(v); });
}
LANES F f_load(const float* p) {
    return each<F>([=](int i) { return vld1q_f32(p + 4 * i); });
}
LANES void f_store(float* p, F v) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, v.v[i]);
}
LANES F f_load_half(const std::uint16_t* p) {
    return each<F>([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
LANES void f_store_half(std::uint16_t* p, F v) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v.v[i])));
}
LANES F f_load_bf16(const std::uint16_t* p) {
    return each<F>([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
// e4m3 divided by 2^8. Sign extension copies the sign to bit 14, where it is cleared.
LANES F f_load_f8(const std::uint8_t* p) {
    const int8x16_t b = vld1q_s8((const std::int8_t*)p);
    const int16x8_t wide[2] = {vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b))};
    return each<F>([&](int i) {
        const int16x4_t four = i % 2 ? vget_high_s16(wide[i / 2]) : vget_low_s16(wide[i / 2]);
        const int16x4_t half = vand_s16(vshl_n_s16(four, 7), vdup_n_s16(std::int16_t(0xbfff)));
        return vcvt_f32_f16(vreinterpret_f16_s16(half));
    });
}
LANES F f_add(F a, F b) {
    return each<F>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
LANES F f_sub(F a, F b) {
    return each<F>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
LANES F f_mul(F a, F b) {
    return each<F>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
LANES F f_div(F a, F b) {
    return each<F>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
LANES F f_sqrt(F a) {
    return each<F>([&](int i) { return vsqrtq_f32(a.v[i]); });
}
LANES F f_max(F a, F b) {
    return each<F>([&](int i) { return vmaxnmq_f32(a.v[i], b.v[i]); });
}
LANES F f_min(F a, F b) {
    return each<F>([&](int i) { return vminnmq_f32(a.v[i], b.v[i]); });
}
LANES F f_abs(F a) {
    return each<F>([&](int i) { return vabsq_f32(a.v[i]); });
}
LANES float f_max_lanes(F a) {
    return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a.v[0], a.v[1]), vmaxnmq_f32(a.v[2], a.v[3])));
}
LANES F f_fma(F a, F b, F c) {
    return each<F>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
LANES F f_round(F a) {
    return each<F>([&](int i) { return vrndnq_f32(a.v[i]); });
}
LANES F f_keep_above(F x, F limit, F v) {
    return each<F>([&](int i) {
        return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x.v[i], limit.v[i]), vreinterpretq_u32_f32(v.v[i])));
    });
}
LANES F f_from_int(I v) {
    return each<F>([&](int i) { return vcvtq_f32_s32(v.v[i]); });
}
LANES I i_from_codes(const std::uint8_t* p) {
    const uint8x16_t b = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(b)), high = vmovl_u8(vget_high_u8(b));
    return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
             vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
             vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
}
LANES I i_from_signed(const std::int8_t* p) {
    const int8x16_t b = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_s8(vget_high_s8(b));
    return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
             vmovl_s16(vget_high_s16(high))}};
}
LANES I i_from_float(F v) {
    return each<I>([&](int i) { return vcvtnq_s32_f32(v.v[i]); });
}
LANES F f_power_of_two(I n) {
    return each<F>([&](int i) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23)); });
}
LANES I i_set(std::int32_t v) {
    return each<I>([=](int) { return vdupq_n_s32(v); });
}
LANES I i_and(I a, I b) {
    return each<I>([&](int i) { return vandq_s32(a.v[i], b.v[i]); });
}
LANES I i_add(I a, I b) {
    return each<I>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
template <int Bits>
LANES I i_shift_left(I v) {
    return each<I>([&](int i) { return vshlq_n_s32(v.v[i], Bits); });
}
LANES I i_sub(I a, I b) {
    return each<I>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
template <int Bits>
LANES I i_shift_right(I v) {
    return each<I>([&](int i) { return vshrq_n_s32(v.v[i], Bits); });
}
LANES std::int32_t i_sum_lanes(I v) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(v.v[0], v.v[1]), vaddq_s32(v.v[2], v.v[3])));
}
LANES void i_store_bytes(std::int8_t* p, I v) {
    const int16x8_t low = vcombine_s16(vmovn_s32(v.v[0]), vmovn_s32(v.v[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(v.v[2]), vmovn_s32(v.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
LANES C c_load(const std::uint8_t* p) {
    return each<C>([=](int i) { return vld1q_u8(p + 16 * i); });
}
template <int Shift>
LANES C c_bits(C v, std::uint8_t mask) {
    return each<C>([&](int i) {
        uint8x16_t x = v.v[i];
        if constexpr (Shift > 0) x = vshrq_n_u8(x, Shift);
        if constexpr (Shift < 0) x = vshlq_n_u8(x, -Shift);
        return vandq_u8(x, vdupq_n_u8(mask));
    });
}
LANES C c_or(C a, C b) {
    return each<C>([&](int i) { return vorrq_u8(a.v[i], b.v[i]); });
}
LANES C c_lookup(C v, const std::uint8_t (&table)[16]) {
    return each<C>([&](int i) { return vqtbl1q_u8(vld1q_u8(table), v.v[i]); });
}
// Codes below 128 are valid signed bytes. 128 is subtracted from wider codes, and 2 * 64 * sum(a) corrects the result.
template <int Bits>
LANES I i_dot(I acc, C codes, std::int32_t a) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(a));
    return each<I>([&](int i) {
        if constexpr (Bits < 8) return vdotq_s32(acc.v[i], vreinterpretq_s8_u8(codes.v[i]), x);
        const int8x16_t half = vdupq_n_s8(64);
        const int32x4_t back = vdotq_s32(vdotq_s32(acc.v[i], half, x), half, x);
        return vdotq_s32(back, vreinterpretq_s8_u8(veorq_u8(codes.v[i], vdupq_n_u8(0x80))), x);
    });
}
}  // namespace freedive::neon
