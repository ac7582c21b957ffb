#include "multiply.h"

#include <algorithm>
#include <vector>

#include "checks.h"
#include "memory.h"

namespace freedive {
namespace {

void multiply_rows(const Kernels& kernels, const Weight& weight, int panel, std::span<const void* const> x,
                   float* out) {
    const Memory scratch(ManyRows::scratch_bytes);
    std::vector<float> products;
    for (std::size_t first = 0; first < x.size(); first += kMostRows) {
        const int count = int(std::min<std::size_t>(kMostRows, x.size() - first));
        ManyRows task{{weight.panel(panel)}, 1, weight.k, x.data() + first, count, scratch.as<void>(), nullptr};
        products.resize(task.panel_stride());
        task.out = products.data();
        kernels.multiply_rows[int(weight.format)](task);
        std::copy_n(products.data(), count * kPanelRows, out + first * kPanelRows);
    }
}

}  // namespace

void multiply(const Kernels& kernels, const Weight& weight, int rows, std::span<const float> x, bool in_bf16,
              std::span<float> out) {
    const std::size_t k = weight.k, groups = (k + kGroup - 1) / kGroup, panel_size = std::size_t(rows) * kPanelRows;
    const int panels = num_panels(weight.rows);
    require(rows >= 0 && x.size() == rows * k && out.size() >= panels * panel_size,
            "multiply: sizes do not match the shape");
    require(!in_bf16 || kernels.to_bf16, "multiply: the level has no products of rows in bfloat16");
    std::vector<QuantisedGroup> codes(rows * groups);
    std::vector<const void*> inputs(rows);
    for (int r = 0; r < rows; r++) {
        const float* row = x.data() + r * k;
        QuantisedGroup* packed = codes.data() + r * groups;
        inputs[r] = in_bf16 || is_quantised(weight.format) ? (const void*)packed : row;
        if (in_bf16)
            kernels.to_bf16(row, weight.k, (std::uint16_t*)packed);
        else if (is_quantised(weight.format))
            kernels.quantise(row, weight.k, 0, packed);
    }
    for (int p = 0; p < panels; p++) {
        float* products = out.data() + p * panel_size;
        if (in_bf16)
            multiply_rows(kernels, weight, p, inputs, products);
        else
            kernels.linear[int(weight.format)](weight.panel(p), weight.k, inputs.data(), rows, products);
    }
}

}  // namespace freedive
