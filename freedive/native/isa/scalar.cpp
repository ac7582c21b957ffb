#include "kernels.h"
#include "vec_scalar.h"

namespace freedive::scalar {
#include "kernels.inl"
}
namespace freedive {
const Kernels scalar_kernels = scalar::table("scalar");
}
