// Python's view of training's layers.
#pragma once

#include <nanobind/nanobind.h>

namespace freedive {
void bind_training(nanobind::module_& m);
}
