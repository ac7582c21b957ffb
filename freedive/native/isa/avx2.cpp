#include "kernels.h"
#include "vec_avx2.h"

namespace freedive::avx2 {
#include "dot_short.inl"
#include "kernels.inl"
}  // namespace freedive::avx2
namespace freedive {
const Kernels avx2_kernels = avx2::table("avx2");
}
