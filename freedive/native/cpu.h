// Which instruction-set levels this machine has.
#pragma once

#include <string>
#include <vector>

#include "isa/kernels.h"

namespace freedive {

// The features that levels need, one for each level: a level's feature includes those that its code uses besides.
struct CpuFeatures {
    bool avx2 = false, avx_vnni = false, avx512 = false, amx = false;  // of x86-64
    bool asimddp = false;                                              // of aarch64
};
CpuFeatures cpu_features();

// The levels of a processor with these features, best last.
std::vector<const Kernels*> kernels_for(const CpuFeatures& has);

// Those of this machine; "scalar" is always there. "amx-emulated" is for tests.
std::vector<const Kernels*> available_kernels();

// The level called `name`, or the best where it is empty. Throws std::invalid_argument that names the levels present.
const Kernels& choose_kernels(const std::string& name);

// Whether this process may use tile registers (AMX) on x86-64; asks the system for them.
bool may_use_tiles();

}  // namespace freedive
