#include "emulated_tiles.h"
#include "kernels.h"
#include "vec_scalar.h"

namespace freedive::scalar {
#include "dot_wide.inl"

#include "kernels.inl"

#include "tile_products.inl"  // reads how the others round

// Products of bfloat16 go by tiles in software, so that every machine can tell what those in hardware are to make.
constexpr Kernels with_tiles(Kernels kernels) {
    kernels.products[int(Precision::Bfloat16)] = tile_products<EmulatedTiles, PlainCells>;
    return kernels;
}
}  // namespace freedive::scalar
namespace freedive {
const Kernels scalar_kernels = scalar::with_tiles(scalar::table("scalar"));
}
