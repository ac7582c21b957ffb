#include "multiply.h"

#include <vector>

#include "checks.h"

namespace freedive {

void multiply(const Kernels& kernels, const Weight& weight, int rows, std::span<const float> x, std::span<float> out) {
    const std::size_t k = weight.k, groups = k / kGroup, panel_size = std::size_t(rows) * kPanelRows;
    const int panels = num_panels(weight.rows);
    require(rows >= 0 && x.size() == rows * k && out.size() >= panels * panel_size,
            "multiply: sizes do not match the shape");
    const bool quantised = is_quantised(weight.format);
    std::vector<QuantisedGroup> codes(rows * groups);
    std::vector<const void*> inputs(rows);
    for (int r = 0; r < rows; r++) {
        inputs[r] = x.data() + r * k;
        if (!quantised) continue;
        kernels.quantise(x.data() + r * k, weight.k, 0, codes.data() + r * groups);
        inputs[r] = codes.data() + r * groups;
    }
    for (int p = 0; p < panels; p++)
        kernels.linear[int(weight.format)](weight.panel(p), weight.k, inputs.data(), rows, out.data() + p * panel_size);
}

}  // namespace freedive
