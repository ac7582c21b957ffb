// Compares every instruction-set level of this machine with the scalar one, bit for bit. Prints the levels.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "../../freedive/native/cpu.h"

using namespace freedive;

namespace {

std::mt19937 random_bits(7);
int num_differences = 0;

std::vector<float> normal(std::size_t n, float scale = 1) {
    std::normal_distribution<float> draw(0, scale);
    std::vector<float> out(n);
    for (float& x : out) x = draw(random_bits);
    return out;
}

// Calls test(kernels, i) for scalar (0) and the level (1).
template <class Test>
void each_of_both(const Kernels& level, Test&& test) {
    test(scalar_kernels, 0);
    test(level, 1);
}

void expect_same(const char* level, const char* what, const void* got, const void* wanted, std::size_t bytes) {
    if (std::memcmp(got, wanted, bytes) == 0) return;
    std::printf("%s differs from scalar in %s\n", level, what);
    num_differences++;
}

// A matrix of random codes under finite scales.
std::vector<std::uint8_t> random_source(Format f, int rows, int k) {
    const std::size_t row_bytes = source_row_bytes(f, k);
    std::vector<std::uint8_t> bytes(row_bytes * rows), panel(panel_bytes(f, k));
    for (int row = 0; row < rows; row++) {
        std::uint8_t* const to = &bytes[row * row_bytes];
        do {
            for (std::size_t i = 0; i < row_bytes; i++) to[i] = std::uint8_t(random_bits());
            if (f == Format::F32) std::memcpy(to, normal(k).data(), row_bytes);
            if (!is_quantised(f) || f == Format::MXFP4 || f == Format::F4G16)  // small exponents
                for (std::size_t i = 0; i < row_bytes; i++) to[i] &= 0xbf;
        } while (!pack_panels(f, to, 1, k, 0, 1, panel.data()));
    }
    return bytes;
}

void compare_linear(const Kernels& level, Format f) {
    constexpr int rows = 40, tokens = 21;
    const int k = is_quantised(f) ? 768 : 333;  // more than one stretch of groups
    const auto source = random_source(f, rows, k);
    const std::size_t bytes = panel_bytes(f, k) * num_panels(rows);
    auto* packed = static_cast<std::uint8_t*>(std::aligned_alloc(64, bytes));
    pack_panels(f, source.data(), rows, k, 0, num_panels(rows), packed);
    const auto x = normal(std::size_t(tokens) * k);
    std::vector<QuantisedGroup> codes[2];
    std::vector<float> out[2];
    each_of_both(level, [&](const Kernels& kernels, int i) {
        codes[i].resize(std::size_t(tokens) * k / kGroup);
        out[i].resize(std::size_t(tokens) * kPanelRows * num_panels(rows));
        for (int t = 0; t < tokens; t++)
            kernels.quantise(&x[std::size_t(t) * k], k, t % 3, &codes[i][std::size_t(t) * k / kGroup]);
        const void* row[tokens];
        for (int t = 0; t < tokens; t++)
            row[t] = is_quantised(f) ? (const void*)&codes[i][std::size_t(t) * k / kGroup] : &x[std::size_t(t) * k];
        for (int p = 0; p < num_panels(rows); p++)
            kernels.linear[int(f)](packed + panel_bytes(f, k) * p, k, row, tokens,
                                   &out[i][std::size_t(p) * tokens * kPanelRows]);
    });
    expect_same(level.name, "quantise", codes[1].data(), codes[0].data(), codes[0].size() * sizeof(QuantisedGroup));
    expect_same(level.name, "linear", out[1].data(), out[0].data(), out[0].size() * sizeof(float));
    if (f == Format::F32 || f == Format::F16 || f == Format::BF16) {
        std::vector<float> sums[2];
        each_of_both(level, [&](const Kernels& kernels, int i) {
            sums[i].resize(k);
            kernels.add_transposed(f, packed, k, x.data(), sums[i].data());
            kernels.add_transposed(f, packed + panel_bytes(f, k), k, x.data() + kPanelRows, sums[i].data());
        });
        expect_same(level.name, "add_transposed", sums[1].data(), sums[0].data(), k * sizeof(float));
    }
    std::free(packed);
}

void compare_peaks(const Kernels& level) {
    constexpr int blocks = 64, n = blocks * kPeakBlock;
    constexpr float infinity = std::numeric_limits<float>::infinity(),
                    odd[] = {infinity, -infinity, 0.0f, -0.0f, 1e-40f};
    auto x = normal(n);
    for (int i = kPeakBlock; i < n; i++)
        if (random_bits() % 8 < std::uint32_t(i / kPeakBlock) % 9) x[i] = odd[random_bits() % std::size(odd)];
    float out[2][blocks];
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.peaks(x.data(), n, out[i]); });
    for (int i = 0; i < blocks; i++) out[0][i] += 0.0f, out[1][i] += 0.0f;  // the largest of 0 and -0 is either
    expect_same(level.name, "peaks", out[1], out[0], sizeof out[0]);
    for (int i = 0; i < blocks; i++)
        out[0][i] = *std::max_element(&x[i * kPeakBlock], &x[i * kPeakBlock] + kPeakBlock) + 0.0f;
    expect_same(level.name, "peaks, which are the largest,", out[1], out[0], sizeof out[0]);
}

void compare_rows(const Kernels& level) {
    constexpr int n = 96;
    const auto a = normal(n, 4), b = normal(n);
    float out[2][n];
    std::uint16_t halves[2][n];
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.rms_norm(a.data(), b.data(), n, 1e-5f, out[i]); });
    expect_same(level.name, "rms_norm", out[1], out[0], sizeof out[0]);
    for (const Activation activation : {Activation::Silu, Activation::GeluTanh, Activation::SwigluOai})
        for (const float limit : {0.0f, 0.9f}) {
            each_of_both(level, [&](const Kernels& kernels, int i) {
                kernels.glu({activation, limit}, a.data(), b.data(), n, out[i]);
            });
            expect_same(level.name, "glu", out[1], out[0], sizeof out[0]);
        }
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.softcap(a.data(), n, 2.5f, out[i]); });
    expect_same(level.name, "softcap", out[1], out[0], sizeof out[0]);
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.weigh(a.data(), n, 9.5f, 0.7f, out[i]); });
    expect_same(level.name, "weigh", out[1], out[0], sizeof out[0]);
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.to_half(a.data(), n, halves[i]); });
    expect_same(level.name, "to_half", halves[1], halves[0], sizeof halves[0]);
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.from_half(halves[0], n, out[i]); });
    expect_same(level.name, "from_half", out[1], out[0], sizeof out[0]);
}

// States of `rows` rows before any key: their values in `out` [rows][width], then the maxima and sums.
template <int Rows, int Width>
struct States {
    float out[Rows][Width + 2] = {};
    AttendPartial states[Rows];
    States() {
        for (int r = 0; r < Rows; r++) states[r] = {kNoScore, 0, out[r]};
    }
    void close() {
        for (int r = 0; r < Rows; r++) out[r][Width] = states[r].max, out[r][Width + 1] = states[r].sum;
    }
};

void compare_attention(const Kernels& level) {
    constexpr int dim = 24, stride = 32, pages = 3, page = kPageTokens * (dim + stride), rows = 13;
    std::vector<std::uint16_t> cache(std::size_t(pages) * page);
    const auto numbers = normal(cache.size()), q = normal(rows * kMaxHeadDim);
    scalar_kernels.to_half(numbers.data(), int(numbers.size()), cache.data());
    const std::uint8_t *keys[pages], *values[pages];
    for (int p = 0; p < pages; p++) {
        keys[p] = (const std::uint8_t*)(cache.data() + p * page);
        values[p] = (const std::uint8_t*)(cache.data() + p * page + kPageTokens * dim);
    }
    AttendTask task{rows, q.data(), {}, {}, 0, keys, values, dim, stride, stride, 0};
    for (int r = 0; r < rows; r++) task.first[r] = 4 * r, task.last[r] = 58 + r;
    States<rows, stride> results[2];
    for (const float softcap : {0.0f, 1.5f}) {
        task.softcap = softcap;
        each_of_both(level, [&](const Kernels& kernels, int i) {
            kernels.attend[int(CacheFormat::F16)](task, results[i].states);
        });
    }
    for (auto& result : results) result.close();
    expect_same(level.name, "attention", results[1].out, results[0].out, sizeof results[0].out);
}

// Groups of random codes, each after a cache line of scales; values 32 wide take one.
std::uint8_t* random_codes(int groups) {
    constexpr std::size_t bytes = kLine + CachedCodes::group_bytes;
    auto* const codes = static_cast<std::uint8_t*>(std::aligned_alloc(64, groups * bytes));
    for (std::size_t i = 0; i < groups * bytes; i++) codes[i] = std::uint8_t(random_bits());
    for (int g = 0; g < groups; g++)
        for (int row = 0; row < kPanelRows; row++)  // bfloats of 2^-1 to 2^1
            ((std::uint16_t*)(codes + g * bytes))[row] = std::uint16_t(0x3f00 + random_bits() % 256);
    return codes;
}

void compare_int8_attention(const Kernels& level) {
    constexpr int dim = 64, width = 32, pages = 3, rows = 13;
    const auto q = normal(rows * kMaxHeadDim);
    std::uint8_t *keys[pages], *values[pages];
    for (int p = 0; p < pages; p++) keys[p] = random_codes(dim / kGroup), values[p] = random_codes(1);
    AttendTask task{rows, q.data(), {}, {}, 0, keys, values, dim, width, width, 0};
    for (int r = 0; r < rows; r++) task.first[r] = 4 * r, task.last[r] = 58 + r;
    States<rows, width> results[2];
    for (const float softcap : {0.0f, 1.5f}) {
        task.softcap = softcap;
        each_of_both(level, [&](const Kernels& kernels, int i) {
            kernels.attend[int(CacheFormat::Int8)](task, results[i].states);
        });
    }
    for (auto& result : results) result.close();
    expect_same(level.name, "attention to int8", results[1].out, results[0].out, sizeof results[0].out);
    for (int p = 0; p < pages; p++) std::free(keys[p]), std::free(values[p]);
}

void compare_latent_attention(const Kernels& level) {
    constexpr int dim = 28, stride = 32, heads = 11, end = 71, pages = 3, page = kPageTokens * stride;
    std::vector<std::uint16_t> cache(std::size_t(pages) * page);
    const auto numbers = normal(cache.size()), q = normal(dim * kLatentHeads);
    scalar_kernels.to_half(numbers.data(), int(numbers.size()), cache.data());
    const std::uint8_t* latents[pages];
    for (int p = 0; p < pages; p++) latents[p] = (const std::uint8_t*)(cache.data() + p * page);
    AttendTask task{heads, q.data(), {}, {}, 0, nullptr, latents, dim, stride, stride, 0};
    for (int head = 0; head < heads; head++) task.last[head] = end;
    States<heads, stride> results[2];
    each_of_both(level, [&](const Kernels& kernels, int i) {
        kernels.attend_latent[int(CacheFormat::F16)](task, results[i].states);
    });
    for (auto& result : results) result.close();
    expect_same(level.name, "latent attention", results[1].out, results[0].out, sizeof results[0].out);
}

// Every level adds inputs in the same order, except for products of bfloat16 in tiles.
void compare_products(const Kernels& level) {
    constexpr int rows = 5, k = 70, columns = 13;
    const auto left = normal(rows * k), right = normal(k * columns);
    std::vector<float> out[2];
    each_of_both(level, [&](const Kernels& kernels, int i) {
        const FloatProducts& by = kernels.products[int(Precision::Float32)];
        std::vector<float> panel(by.cells(k) * by.tile_columns), tile(by.cells(k) * by.tile_rows);
        out[i].assign(rows * columns, 0.5f);
        by.pack_columns({right.data(), columns}, k, 0, columns, panel.data());
        const MutableView to{out[i].data(), columns};
        const ProductTile whole{{left.data(), k}, 1, panel.data(), k, rows, columns, true, to};
        by.multiply(&whole, 1);
        by.pack_left_columns({right.data(), columns}, k, 3, rows, tile.data());
        const ProductTile packed{{tile.data(), 1}, by.left_step, panel.data(), k, rows, columns, true, to};
        by.multiply(&packed, 1);
    });
    expect_same(level.name, "products of floats", out[1].data(), out[0].data(), out[0].size() * sizeof(float));
}

void compare_training(const Kernels& level) {
    constexpr int n = 53, whole = 64;
    const auto x = normal(n), y = normal(n), d = normal(n), squares = normal(n);
    struct Results {
        float numbers[9][whole] = {}, sums[4];
    } results[2];
    each_of_both(level, [&](const Kernels& kernels, int i) {
        const TrainKernels& train = kernels.train;
        auto& [made, sums] = results[i];
        train.weighted_swiglu(x.data(), y.data(), 0.7f, n, made[0]);
        sums[0] = train.weighted_swiglu_gradient(x.data(), y.data(), d.data(), 0.7f, n, made[1], made[2], made[3]);
        std::memcpy(made[4], x.data(), n * sizeof(float));
        sums[1] = train.softmax(made[4], n - 2, n, 1.3f, 0.9f);
        sums[2] = train.dot(x.data(), y.data(), n);
        train.rms_norm_gradient(x.data(), y.data(), d.data(), n, 1e-6f, made[5], made[6]);
        float weight[n], gradient[n], momentum[n], square[n];
        for (int j = 0; j < n; j++)
            weight[j] = x[j], gradient[j] = y[j], momentum[j] = d[j], square[j] = squares[j] * squares[j];
        const Updated at{weight, gradient, momentum, square, n, 0.99f, 0.01f};
        train.adamw(at, 3, n - 3, {0.9f, 0.95f, 0.1f, 1e-8f, 0.5f});
        train.nesterov(at, 0, n, 0.95f, 0.5f);
        train.apply_update(at, 1, n - 1);
        std::memcpy(made[7], weight, sizeof weight);
        std::memcpy(made[8], momentum, sizeof momentum);
        sums[3] = square[7];
    });
    expect_same(level.name, "training", &results[1], &results[0], sizeof results[0]);
}

}  // namespace

int main() {
    for (const Kernels* level : available_kernels()) {
        for (int f = 0; f < kNumFormats; f++) compare_linear(*level, Format(f));
        compare_rows(*level);
        compare_peaks(*level);
        compare_attention(*level);
        compare_int8_attention(*level);
        compare_latent_attention(*level);
        compare_products(*level);
        compare_training(*level);
        std::printf("%s\n", level->name);
    }
    return num_differences != 0;
}
