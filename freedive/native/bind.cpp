// Python's view of what stands alone: formats, sampling, measuring. Programs are in bind_program.cpp.
#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <thread>

#include "bandwidth.h"
#include "checksum.h"
#include "cpu.h"
#include "memory.h"
#include "operations.h"
#include "peak.h"
#include "sampling.h"
#include "train/bind.h"

namespace freedive {
namespace {

std::span<const float> view(const Floats& a) { return {a.data(), a.size()}; }
std::span<const std::uint8_t> view(const Bytes& a) { return {a.data(), a.size()}; }

const Weights& weigh_at_best(const Floats& logits, const Sampling& sampling) {
    static const Kernels& best = choose_kernels("");
    static thread_local Weights weights;  // kept, since fresh memory takes longer than what is computed
    require(logits.size() > 0, "there are no logits");
    weigh(best, view(logits), sampling, weights);
    return weights;
}

bool pack(int format, int rows, int k, Bytes source, MutableBytes out, int num_threads) {
    const Format f = checked_format(format);
    require(out.size() == checked_bytes(f, rows, k) && source.size() == source_row_bytes(f, k) * rows,
            "pack: sizes do not match the shape");
    nb::gil_scoped_release released;
    std::atomic<int> next = 0;
    std::atomic<bool> finite = true;
    const auto work = [&] {
        for (int p; (p = next++) < num_panels(rows);)
            if (!pack_panels(f, source.data(), rows, k, p, p + 1, out.data())) finite = false;
    };
    std::vector<std::thread> helpers;
    for (int t = 1; t < num_threads; t++) helpers.emplace_back(work);
    work();
    for (std::thread& t : helpers) t.join();
    return finite.load();
}

Weight checked_weight(int format, int rows, int k, const Bytes& data) {
    const Format f = checked_format(format);
    require(data.size() == checked_bytes(f, rows, k), "packed weight has the wrong size");
    return {f, rows, k, data.data()};
}

// One product outside a program, for tests and benchmarks of kernels: x [rows, k] times a packed weight, into
// [panels, rows, 32].
void multiply(const std::string& isa, int format, int out_rows, int k, Bytes data,
              nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> x, MutableFloats out) {
    const Kernels& kernels = choose_kernels(isa);
    const Weight w = checked_weight(format, out_rows, k, data);
    const int rows = int(x.shape(0)), groups = k / kGroup;
    require(x.shape(1) == std::size_t(k) && out.size() >= std::size_t(num_panels(out_rows)) * rows * kPanelRows,
            "multiply: sizes do not match the shape");
    const bool quantised = is_quantised(w.format);
    std::vector<QuantisedGroup> codes(std::size_t(rows) * groups);
    for (int r = 0; quantised && r < rows; r++)
        kernels.quantise(x.data() + std::size_t(r) * k, k, 0, codes.data() + std::size_t(r) * groups);
    std::vector<const void*> row(rows);
    for (int r = 0; r < rows; r++)
        row[r] = quantised ? (const void*)(codes.data() + std::size_t(r) * groups) : x.data() + std::size_t(r) * k;
    for (int p = 0; p < num_panels(out_rows); p++)
        kernels.linear[format](w.panel(p), k, row.data(), rows, out.data() + std::size_t(p) * rows * kPanelRows);
}

void bind_formats(nb::module_& m) {
    m.def(
        "packed_bytes", [](int f, int rows, int k) { return checked_bytes(checked_format(f), rows, k); }, "format"_a,
        "rows"_a, "k"_a);
    m.def("pack", &pack, "format"_a, "rows"_a, "k"_a, "source"_a, "out"_a, "num_threads"_a = 1);
    m.def("unpack_row", [](int f, int rows, int k, Bytes data, int row, MutableFloats out) {
        const Weight w = checked_weight(f, rows, k, data);
        require(out.size() >= std::size_t(k), "unpack_row: the output is too short");
        unpack_row(w, index_below(row, rows, "row"), out.data());
    });
    m.def("multiply", &multiply, "isa"_a, "format"_a, "rows"_a, "k"_a, "packed"_a, "x"_a, "out"_a);
    m.def(
        "checksum",
        [](Bytes data) {
            nb::gil_scoped_release released;
            return checksum(view(data));
        },
        "data"_a);
}

void bind_sampling(nb::module_& m) {
    m.def(
        "kth_largest",
        [](Floats values, int k) {
            return kth_largest(view(values), 1 + index_below(k - 1ll, values.size(), "place"));
        },
        "values"_a, "k"_a);
    m.def(
        "mask",
        [](Floats logits, Bytes allowed, MutableFloats out) {
            require(out.size() == logits.size(), "mask: sizes do not match");
            mask(view(logits), view(allowed), out.data());
        },
        "logits"_a, "allowed"_a, "out"_a);
    m.def(
        "weigh",
        [](Floats logits, float temperature, int top_k, float top_p, float min_p, MutableFloats out) {
            require(out.size() == logits.size(), "weigh: sizes do not match");
            const Weights& weights = weigh_at_best(logits, {temperature, top_k, top_p, min_p});
            for (std::size_t i = 0; i < out.size(); i++)
                out.data()[i] = weights.values[i] >= weights.floor ? weights.values[i] : 0;
        },
        "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "out"_a);
    m.def(
        "draw",
        [](Floats logits, float temperature, int top_k, float top_p, float min_p, double random) {
            return draw(weigh_at_best(logits, {temperature, top_k, top_p, min_p}), random);
        },
        "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "random"_a);
}

void bind_machine(nb::module_& m) {
    m.def("isa_levels", [] {
        std::vector<std::string> names;
        for (const Kernels* level : available_kernels()) names.push_back(level->name);
        return names;
    });
    m.def("resident_bytes", [](nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> data) {
        return resident_bytes(data.data(), data.nbytes());
    }, "data"_a);
    m.def("keep_freed_memory", keep_freed_memory, "num_bytes"_a);
    m.def(
        "read_bandwidth",
        [](int num_threads, int megabytes) {
            return read_bandwidth(num_threads, megabytes * std::size_t(1 << 20)) / 1e9;
        },
        "num_threads"_a, "megabytes"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("compute_peaks", &compute_peaks, "num_threads"_a, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace

NB_MODULE(_native, m) {
    m.attr("MAX_HEAD_DIM") = kMaxHeadDim;
    m.attr("MAX_EXPERTS") = kMaxExperts;
    m.attr("CAREFUL_TOKENS") = kCarefulTokens;
    bind_formats(m);
    bind_sampling(m);
    bind_machine(m);
    bind_program(m);
    bind_training(m);
}

}  // namespace freedive
