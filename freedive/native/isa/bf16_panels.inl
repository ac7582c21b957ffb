// Products of panels and many rows in bfloat16 with float sums, on tile registers: the rows of prompts. Included in the
// namespace of a level, after groups.inl; the class of tile registers is a template parameter.
//
// A stretch of a panel, 16 kB that stay in the L1 cache, is unpacked once, as right factors: for every step of 32
// inputs and each of the panel's two tiles [pair of inputs][output][2]. Rows are gathered as left factors: for every
// strip of up to 16 rows, each step [row][32].

constexpr int kStepInputs = 32, kPairs = kStepInputs / 2;
using Factor = std::uint16_t[kTileHeight][kStepInputs];
static_assert(sizeof(Factor) == kTileHeight * kTileBytes && kStepInputs == kGroup && kPairs == kTileHeight);

// Inputs of a quad are paired as their codes lie in words: 0 with 2 and 1 with 3. Rows have the same order.
alignas(64) constexpr std::uint16_t kPairOrder[] = {0,  2,  1,  3,  4,  6,  5,  7,  8,  10, 9,  11, 12, 14, 13, 15,
                                                    16, 18, 17, 19, 20, 22, 21, 23, 24, 26, 25, 27, 28, 30, 29, 31};

// Weights are cut to bfloat16, which is cheaper than rounding, and makes a float with mantissa m smaller by up to 2^-7
// / m of its size, half of that in the mean. This factor makes up for the mean in least squares, for m uniform in [1,
// 2). The variance that is left is 1.1 times that of rounding to nearest.
constexpr float kCutOff = 1 + 0.643f / 256;

// Pairs of bfloat16: the upper halves of `first` and `second`.
LANES __m512i cut_pairs(F first, F second) {
    const __m512i down = _mm512_set1_epi32(0x03020302);  // bytes 2 and 3 of every lane; 4 lanes have 16 bytes
    const __m512i bytes = _mm512_add_epi8(down, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
    return _mm512_mask_shuffle_epi8(_mm512_castps_si512(second), 0x3333333333333333, _mm512_castps_si512(first), bytes);
}

// A weight is scale * code + offset, with the cut made up for. Element [1] is that of the second half group.
template <class T>
struct TileWeights {
    F scale[2], minimum[2];
    LANES TileWeights(const TileScales<T>& from) {
        for (int half = 0; half < 1 + T::halves; half++) {
            scale[half] = f_mul(from.scale[half], f_set(kCutOff));
            minimum[half] = f_set(0.0f);
            if constexpr (T::minima) minimum[half] = f_mul(from.minimum[half], f_set(kCutOff));
        }
    }
    // The offset for codes that are read `more` too high.
    LANES F offset(int half, float more) const {
        return _mm512_fnmadd_ps(scale[half], f_set(T::zero + more), minimum[half]);
    }
};

// The codes of inputs 0 and 2 (words[0]) and of inputs 1 and 3 of a quad, as words `base` | code.
template <class T, int Quad>
LANES void code_words(const std::uint8_t* tile, int base, __m512i (&words)[2]) {
    const __m512i ones = _mm512_set1_epi16(short(base));
    constexpr int or_and = 0xea;  // (a & b) | c
    if constexpr (T::bits == 4 && T::code_bits == 4) {
        const __m512i line = c_load(tile + Quad / 2 * kLine), mask = _mm512_set1_epi16(15);
        const __m512i low = Quad % 2 ? _mm512_srli_epi16(line, 4) : line;
        words[0] = _mm512_ternarylogic_epi32(low, mask, ones, or_and);
        words[1] = Quad % 2 ? _mm512_or_si512(_mm512_srli_epi16(line, 12), ones)
                            : _mm512_ternarylogic_epi32(_mm512_srli_epi16(line, 8), mask, ones, or_and);
    } else {
        const __m512i codes = load_codes<T, Quad>(tile);
        words[0] = _mm512_ternarylogic_epi32(codes, _mm512_set1_epi16(0xff), ones, or_and);
        words[1] = _mm512_or_si512(_mm512_srli_epi16(codes, 8), ones);
    }
}

// Unpacks quads of codes of up to 7 bits. The word 0x4300 | code is 128 + code as a bfloat16, so both codes of a word
// pair become floats without a conversion. The second one keeps the first one's word as lower bits of its mantissa,
// less than 2^-8 of a code's unit but for their constant part.
template <class T>
struct NarrowCodes {
    static constexpr int base = 0x4300;
    F scale[2], first[2], second[2];
    LANES explicit NarrowCodes(const TileWeights<T>& weights) {
        for (int half = 0; half < 1 + T::halves; half++) {
            scale[half] = weights.scale[half];
            first[half] = weights.offset(half, 128);
            second[half] = weights.offset(half, 128 + base / 65536.0f);
        }
    }
    template <int Quad>
    LANES void unpack(const std::uint8_t* tile, std::uint16_t (*out)[kStepInputs]) const {
        constexpr int half = T::halves && Quad >= kQuads / 2;
        __m512i words[2];
        code_words<T, Quad>(tile, base, words);
        for (int i = 0; i < 2; i++) {
            const F a = _mm512_castsi512_ps(_mm512_slli_epi32(words[i], 16)), b = _mm512_castsi512_ps(words[i]);
            _mm512_store_si512(out[i],
                               cut_pairs(f_fma(a, scale[half], first[half]), f_fma(b, scale[half], second[half])));
        }
    }
};

// Unpacks quads of codes of 8 bits.
template <class T>
struct WideCodes {
    F scale[2], offset[2];
    LANES explicit WideCodes(const TileWeights<T>& weights) {
        for (int half = 0; half < 1 + T::halves; half++)
            scale[half] = weights.scale[half], offset[half] = weights.offset(half, 0);
    }
    template <int Quad>
    LANES void unpack(const std::uint8_t* tile, std::uint16_t (*out)[kStepInputs]) const {
        constexpr int half = T::halves && Quad >= kQuads / 2;
        const I codes = load_codes<T, Quad>(tile), byte = i_set(0xff);
        const auto weight = [&](I code) __attribute__((always_inline)) {
            return f_fma(f_from_int(code), scale[half], offset[half]);
        };
        _mm512_store_si512(out[0],
                           cut_pairs(weight(i_and(codes, byte)), weight(i_and(_mm512_srli_epi32(codes, 16), byte))));
        _mm512_store_si512(
            out[1], cut_pairs(weight(i_and(_mm512_srli_epi32(codes, 8), byte)), weight(_mm512_srli_epi32(codes, 24))));
    }
};

template <class T, class Codes, int Quad = 0>
LANES void unpack_quads(const Codes& codes, const std::uint8_t* tile, Factor& out) {
    codes.template unpack<Quad>(tile, out + 2 * Quad);
    if constexpr (Quad + 1 < kQuads) unpack_quads<T, Codes, Quad + 1>(codes, tile, out);
}

template <class T>
LANES void unpack_group(const std::uint8_t* panel, int g, int tile, Factor& out) {
    using Codes = std::conditional_t<(T::code_bits < 8), NarrowCodes<T>, WideCodes<T>>;
    const std::uint8_t* group = panel + T::group_offset(g);
    const std::uint8_t* span = panel + T::group_offset(g / T::span * T::span) - T::span_lines * kLine;
    unpack_quads<T>(Codes(TileWeights<T>(TileScales<T>(span, group, tile))),
                    group + kLine * (T::group_lines + tile * T::tile_lines), out);
}

template <Format Fmt>
LANES F load_float(const std::uint8_t* row, F scale) {
    if constexpr (Fmt == Format::BF16) return f_load_bf16((const std::uint16_t*)row);  // exact
    if constexpr (Fmt == Format::F32) return f_mul(f_load((const float*)row), f_set(kCutOff));
    if constexpr (Fmt == Format::F16) return f_mul(f_load_half((const std::uint16_t*)row), f_set(kCutOff));
    return f_mul(f_load_f8(row), scale);
}

// Unpacks the inputs of a step of a tile of floats; inputs from k on are zeros.
template <Format Fmt>
LANES void unpack_floats(const std::uint8_t* panel, int k, int step, int tile, Factor& out) {
    constexpr int row_bytes = kPanelRows * float_bytes(Fmt), tile_bytes = row_bytes / 2;
    const int first = step * kStepInputs;
    const std::uint8_t* rows = panel + std::size_t(first) * row_bytes + tile * tile_bytes;
    F scale = f_set(kCutOff);
    if constexpr (Fmt == Format::F8G128) {
        const int block = first / kF8Block;
        const std::uint8_t* scales = panel + std::size_t(block) * (kF8ScaleBytes + kF8Block * row_bytes);
        rows += std::size_t(block + 1) * kF8ScaleBytes;
        scale = f_mul(f_load((const float*)scales + tile * kTileRows), f_set(256 * kCutOff));
    }
    const auto input = [&](int i) __attribute__((always_inline)) {
        return first + i < k ? load_float<Fmt>(rows + i * row_bytes, scale) : f_set(0.0f);
    };
    for (int i = 0; i < kStepInputs; i += 4)
        for (int j = 0; j < 2; j++) _mm512_store_si512(out[i / 2 + j], cut_pairs(input(i + j), input(i + j + 2)));
}

// A function of its own, since it is called amidst products: their latency hides it.
template <Format Fmt>
__attribute__((noinline)) void unpack_step(const std::uint8_t* panel, int k, int step, int tile, Factor& out) {
    if constexpr (is_quantised(Fmt))
        unpack_group<Quantised<Fmt>>(panel, step, tile, out);
    else
        unpack_floats<Fmt>(panel, k, step, tile, out);
}

// Rows of a left factor, `height` in a strip, as one stretch of steps.
using Strip = Factor[kStretchSteps];

LANES void gather_rows(const std::uint16_t* const* x, int rows, int height, int begin, int end, Strip* strips) {
    constexpr int ahead = 4;
    for (int r = 0; r < rows; r++) {
        auto& strip = strips[r / height];
        for (int step = begin; r + ahead < rows && step < end; step++)
            __builtin_prefetch(x[r + ahead] + step * kStepInputs);
        for (int step = begin; step < end; step++)
            _mm512_store_si512(strip[step - begin][r % height], _mm512_loadu_si512(x[r] + step * kStepInputs));
    }
}

// Registers: accumulators [strip][tile], two strips, two tiles of the panel.
constexpr int kFloatSums = 0, kLeft = 4, kRight = 6;

// Calls meanwhile() after each step.
template <int Strips, class Tiles, class Meanwhile>
LANES void multiply_stretch(Tiles& tiles, const Strip* strips, const Factor (*factors)[2], int steps, int height,
                            bool is_first, float* out, Meanwhile&& meanwhile) {
    constexpr int stride = kPanelRows * sizeof(float);
    const auto sum = [&](int i) { return out + i / 2 * height * kPanelRows + i % 2 * kTileRows; };
#pragma GCC unroll 4
    for (int i = 0; i < 2 * Strips; i++)
        if (is_first)
            tiles.zero(kFloatSums + i);
        else
            tiles.load(kFloatSums + i, sum(i), stride);
    for (int step = 0; step < steps; step++) {
        tiles.load(kRight, factors[step][0], kTileBytes);
        tiles.load(kRight + 1, factors[step][1], kTileBytes);
        tiles.load(kLeft, strips[0][step], kTileBytes);
        tiles.dot_bf16(kFloatSums, kLeft, kRight);
        tiles.dot_bf16(kFloatSums + 1, kLeft, kRight + 1);
        if constexpr (Strips > 1) {
            tiles.load(kLeft + 1, strips[1][step], kTileBytes);
            tiles.dot_bf16(kFloatSums + 2, kLeft + 1, kRight);
            tiles.dot_bf16(kFloatSums + 3, kLeft + 1, kRight + 1);
        }
        meanwhile();
    }
#pragma GCC unroll 4
    for (int i = 0; i < 2 * Strips; i++) tiles.store(kFloatSums + i, sum(i), stride);
}

inline TileConfig strip_config(int height) {
    TileConfig config;
    for (int i = 0; i < 6; i++) config.shape(i, height, kTileBytes);
    for (int i = 0; i < 2; i++) config.shape(kRight + i, kPairs, kTileBytes);
    return config;
}

// The right factors of a stretch, which are unpacked bit by bit.
template <Format Fmt>
struct Unpacking {
    alignas(64) Factor factors[kStretchSteps][2];
    const std::uint8_t* panel;
    int k, begin, size, done;
    void start(const std::uint8_t* of_panel, int inputs, int begin_step, int end_step) {
        panel = of_panel, k = inputs, begin = begin_step, size = 2 * (end_step - begin_step), done = 0;
    }
    void advance(int to) {
        for (; done < to; done++) unpack_step<Fmt>(panel, k, begin + done / 2, done % 2, factors[done / 2][done % 2]);
    }
};

// While a stretch is multiplied, the next one is unpacked.
template <class Tiles, Format Fmt>
void multiply_rows(const ManyRows& task) {
    const auto* x = (const std::uint16_t* const*)task.x;
    auto* strips = (Strip*)task.scratch;
    const int num_strips = (task.num_rows + kTileHeight - 1) / kTileHeight;
    const int height = (task.num_rows + num_strips - 1) / num_strips;
    const int steps = (task.k + kStepInputs - 1) / kStepInputs;
    const auto end_of = [&](int begin) { return begin + kStretchSteps < steps ? begin + kStretchSteps : steps; };
    Tiles tiles(strip_config(height));
    Unpacking<Fmt> unpackings[2], *now = unpackings, *next = now + 1;
    now->start(task.panels[0], task.k, 0, end_of(0));
    now->advance(now->size);
    for (int begin = 0; begin < steps; begin += kStretchSteps) {
        const int end = end_of(begin);
        gather_rows(x, task.num_rows, height, begin, end, strips);
        for (int p = 0; p < task.num_panels; p++) {
            const bool is_last = p + 1 == task.num_panels;
            if (!is_last)
                next->start(task.panels[p + 1], task.k, begin, end);
            else
                next->start(task.panels[0], task.k, end, end_of(end));
            int count = 0;
            const int total = (num_strips + 1) / 2 * (end - begin);
            const auto unpack = [&]() __attribute__((always_inline)) { next->advance(next->size * ++count / total); };
            float* out = task.out + p * task.panel_stride();
            for (int s = 0; s < num_strips; s += 2, out += 2 * height * kPanelRows)
                if (s + 1 < num_strips)
                    multiply_stretch<2>(tiles, strips + s, now->factors, end - begin, height, begin == 0, out, unpack);
                else
                    multiply_stretch<1>(tiles, strips + s, now->factors, end - begin, height, begin == 0, out, unpack);
            std::swap(now, next);
        }
    }
}

// Rounds a row to bfloat16, to nearest even, in the order of pairs.
void to_bf16(const float* x, int k, std::uint16_t* out) {
    const __m512i order = _mm512_load_si512(kPairOrder);
    for (int i = 0; i < k; i += kStepInputs) {
        const auto rounded = [&](int at) __attribute__((always_inline)) {
            const int left = k - i - at;
            const __mmask16 some = left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
            const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(some, x + i + at));
            const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), i_set(1));
            const __m512i sum = i_add(i_add(bits, i_set(0x7fff)), even);
            return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
        };
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(rounded(0)), rounded(16), 1);
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(order, both));
    }
}
