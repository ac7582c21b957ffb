#include "kernels.h"
#include "vec_avx_vnni.h"

namespace freedive::avx_vnni {
#include "dot_tile.inl"
#include "kernels.inl"
}  // namespace freedive::avx_vnni
namespace freedive {
const Kernels avx_vnni_kernels = avx_vnni::table("avx_vnni");
}
