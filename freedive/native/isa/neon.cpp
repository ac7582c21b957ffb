#include "kernels.h"
#include "vec_neon.h"

namespace freedive::neon {
#include "kernels.inl"
}
namespace freedive {
const Kernels neon_kernels = neon::table("neon");
}
