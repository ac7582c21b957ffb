// Which instruction-set levels this machine has.
#pragma once

#include <string>
#include <vector>

#include "isa/kernels.h"

namespace freedive {

// Best last; "scalar" is always there. "amx-emulated" is for tests.
std::vector<const Kernels*> available_kernels();

// The level called `name`, or the best where it is empty. Throws std::invalid_argument that names the levels present.
const Kernels& choose_kernels(const std::string& name);

// Whether this process may use tile registers (AMX) on x86-64; asks the system for them.
bool may_use_tiles();

}  // namespace freedive
