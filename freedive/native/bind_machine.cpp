// Python's view of the machine: instruction-set levels, resident memory, bandwidth and peak operations per second.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bandwidth.h"
#include "bind.h"
#include "cpu.h"
#include "memory.h"
#include "peak.h"

namespace freedive {

namespace {

std::vector<std::string> names(const std::vector<const Kernels*>& levels) {
    std::vector<std::string> names;
    for (const Kernels* level : levels) names.push_back(level->name);
    return names;
}

}  // namespace

void bind_machine(nb::module_& m) {
    m.def("isa_levels", [] { return names(available_kernels()); });
    m.def(
        "isa_levels_with",
        [](bool avx2, bool avx_vnni, bool avx512) {
            return names(kernels_for({.avx2 = avx2, .avx_vnni = avx_vnni, .avx512 = avx512}));
        },
        nb::kw_only(), "avx2"_a = false, "avx_vnni"_a = false, "avx512"_a = false);
    m.def(
        "resident_bytes",
        [](nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> data) {
            return resident_bytes(data.data(), data.nbytes());
        },
        "data"_a);
    m.def("keep_freed_memory", keep_freed_memory, "num_bytes"_a);
    m.def(
        "read_bandwidth",
        [](int num_threads, int megabytes) {
            return read_bandwidth(num_threads, megabytes * std::size_t(1 << 20)) / 1e9;
        },
        "num_threads"_a, "megabytes"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("compute_peaks", &compute_peaks, "num_threads"_a, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace freedive
