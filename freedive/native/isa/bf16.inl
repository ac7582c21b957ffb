// Conversion of floats to bfloat16: round to nearest, ties to even. NaN stays NaN.

// The bfloat16 is in the upper 16 bits of the result; the lower ones are 0.
LANES std::uint32_t bf16_bits(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const std::uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : rounded & 0xffff0000;
}
LANES float nearest_bf16(float x) {
    const std::uint32_t bits = bf16_bits(x);
    float y;
    __builtin_memcpy(&y, &bits, sizeof y);
    return y;
}
LANES std::uint32_t bf16_pair(float first, float second) { return bf16_bits(first) >> 16 | bf16_bits(second); }
