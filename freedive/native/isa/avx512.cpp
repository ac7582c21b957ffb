#include "kernels.h"
#include "vec_avx512.h"

namespace freedive::avx512 {
#include "dot_wide.inl"
#include "kernels.inl"
}  // namespace freedive::avx512
namespace freedive {
const Kernels avx512_kernels = avx512::table("avx512");
}
