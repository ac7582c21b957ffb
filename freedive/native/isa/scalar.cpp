#include "kernels.h"
#include "vec_scalar.h"

namespace freedive::scalar {
#include "dot_wide.inl"
#include "kernels.inl"
}  // namespace freedive::scalar
namespace freedive {
const Kernels scalar_kernels = scalar::table("scalar");
}
