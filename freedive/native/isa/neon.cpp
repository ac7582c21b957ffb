#include "kernels.h"
#include "vec_neon.h"

namespace freedive::neon {
#include "dot_wide.inl"
#include "kernels.inl"
}  // namespace freedive::neon
namespace freedive {
const Kernels neon_kernels = neon::table("neon");
}
