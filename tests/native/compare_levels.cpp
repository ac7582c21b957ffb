// Holds every instruction-set level that this machine has against the scalar one, bit for bit. Prints the levels.
#include <cstdio>
#include <cstring>
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
            if (!is_quantised(f) || f == Format::MXFP4)  // exponents of reason
                for (std::size_t i = 0; i < row_bytes; i++) to[i] &= 0xbf;
        } while (!pack_panels(f, to, 1, k, 0, 1, panel.data()));
    }
    return bytes;
}

void compare_linear(const Kernels& level, Format f) {
    constexpr int rows = 40, tokens = 13;
    const int k = is_quantised(f) ? 512 : 333;
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
            kernels.quantise(&x[std::size_t(t) * k], k, &codes[i][std::size_t(t) * k / kGroup]);
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
        float sums[2][k] = {};
        each_of_both(level, [&](const Kernels& kernels, int i) {
            kernels.add_transposed(f, packed, k, x.data(), sums[i]);
            kernels.add_transposed(f, packed + panel_bytes(f, k), k, x.data() + kPanelRows, sums[i]);
        });
        expect_same(level.name, "add_transposed", sums[1], sums[0], sizeof sums[0]);
    }
    std::free(packed);
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
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.to_half(a.data(), n, halves[i]); });
    expect_same(level.name, "to_half", halves[1], halves[0], sizeof halves[0]);
    each_of_both(level, [&](const Kernels& kernels, int i) { kernels.from_half(halves[0], n, out[i]); });
    expect_same(level.name, "from_half", out[1], out[0], sizeof out[0]);
}

void compare_attention(const Kernels& level) {
    constexpr int dim = 24, stride = 32, pages = 3, page = kPageTokens * (dim + stride);
    std::vector<std::uint16_t> cache(std::size_t(pages) * page);
    const auto values = normal(cache.size()), q = normal(2 * dim);
    scalar_kernels.to_half(values.data(), int(values.size()), cache.data());
    const std::uint8_t *key_pages[pages], *value_pages[pages];
    for (int p = 0; p < pages; p++) {
        key_pages[p] = (const std::uint8_t*)(cache.data() + p * page);
        value_pages[p] = (const std::uint8_t*)(cache.data() + p * page + kPageTokens * dim);
    }
    float out[2][2][2 * stride] = {};
    each_of_both(level, [&](const Kernels& kernels, int i) {
        AttendPartial partial[2];
        for (int row = 0; row < 2; row++) {
            const AttendTask task{1,         {q.data() + row * dim},
                                  {5 * row}, {70 + row},
                                  0,         71,
                                  key_pages, value_pages,
                                  dim,       stride,
                                  0.2f,      row * 1.5f};
            partial[row] = {0, 0, out[i][row]};
            kernels.attend_f16(task, &partial[row]);
        }
        kernels.fold(partial[0], partial[1], stride);
        out[i][1][stride] = partial[0].max, out[i][1][stride + 1] = partial[0].sum;
    });
    expect_same(level.name, "attention", out[1], out[0], sizeof out[0]);
}

void compare_latent_attention(const Kernels& level) {
    constexpr int dim = 28, rank = 20, stride = 32, heads = 11, end = 71, pages = 3, page = kPageTokens * stride;
    std::vector<std::uint16_t> cache(std::size_t(pages) * page);
    const auto values = normal(cache.size()), q = normal(dim * kLatentHeads);
    scalar_kernels.to_half(values.data(), int(values.size()), cache.data());
    const std::uint8_t* latents[pages];
    for (int p = 0; p < pages; p++) latents[p] = (const std::uint8_t*)(cache.data() + p * page);
    const LatentTask task{q.data(), heads, 0, end, latents, dim, rank, stride, 0.3f};
    float out[2][heads][stride + 2] = {};
    each_of_both(level, [&](const Kernels& kernels, int i) {
        AttendPartial partial[heads];
        for (int h = 0; h < heads; h++) partial[h] = {0, 0, out[i][h]};
        kernels.attend_latent_f16(task, partial);
        for (int h = 0; h < heads; h++) out[i][h][stride] = partial[h].max, out[i][h][stride + 1] = partial[h].sum;
    });
    expect_same(level.name, "latent attention", out[1], out[0], sizeof out[0]);
}

}  // namespace

int main() {
    for (const Kernels* level : available_kernels()) {
        for (int f = 0; f < kNumFormats; f++) compare_linear(*level, Format(f));
        compare_rows(*level);
        compare_attention(*level);
        compare_latent_attention(*level);
        std::printf("%s\n", level->name);
    }
    return num_differences != 0;
}
