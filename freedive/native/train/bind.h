// Python's view of training: of layers, and of optimizers' updates.
#pragma once

#include <nanobind/nanobind.h>

namespace freedive {
class Training;
void bind_training(nanobind::module_& m);
void bind_updates(nanobind::module_& m, nanobind::class_<Training>& training);
}  // namespace freedive
