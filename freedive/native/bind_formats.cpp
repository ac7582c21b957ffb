// Python's view of weight formats: packing, unpacking, products of a packed weight on its own, checksums.
#include <nanobind/stl/string.h>

#include <vector>

#include "bind.h"
#include "checksum.h"
#include "cpu.h"

namespace freedive {
namespace {

bool pack(Format format, int rows, int k, Bytes source, MutableBytes out, int num_threads) {
    require(out.size() == checked_bytes(format, rows, k) && source.size() == source_row_bytes(format, k) * rows,
            "pack: sizes do not match the shape");
    nb::gil_scoped_release released;
    return pack_matrix(format, source.data(), rows, k, out.data(), num_threads);
}

Weight checked_weight(Format format, int rows, int k, const Bytes& data) {
    require(data.size() == checked_bytes(format, rows, k), "packed weight has the wrong size");
    return {format, rows, k, data.data()};
}

// One product outside a program, for tests and benchmarks of kernels: x [rows, k] times a packed weight, into
// [panels, rows, 32].
void multiply(const std::string& isa, Format format, int out_rows, int k, Bytes data,
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
        kernels.linear[int(format)](w.panel(p), k, row.data(), rows, out.data() + std::size_t(p) * rows * kPanelRows);
}

}  // namespace

void bind_formats(nb::module_& m) {
    nb::enum_<Format>(m, "Format")
        .value("F32", Format::F32)
        .value("F16", Format::F16)
        .value("BF16", Format::BF16)
        .value("F8G128", Format::F8G128)
        .value("Q8_0", Format::Q8_0)
        .value("Q4_0", Format::Q4_0)
        .value("Q4_1", Format::Q4_1)
        .value("Q5_0", Format::Q5_0)
        .value("Q5_1", Format::Q5_1)
        .value("Q2_K", Format::Q2_K)
        .value("Q3_K", Format::Q3_K)
        .value("Q4_K", Format::Q4_K)
        .value("Q5_K", Format::Q5_K)
        .value("Q6_K", Format::Q6_K)
        .value("IQ4_NL", Format::IQ4_NL)
        .value("IQ4_XS", Format::IQ4_XS)
        .value("MXFP4", Format::MXFP4)
        .value("I4G64", Format::I4G64)
        .value("I4G128", Format::I4G128)
        .value("I8G128", Format::I8G128)
        .value("I4G32Z", Format::I4G32Z)
        .value("I4G64Z", Format::I4G64Z)
        .value("I4G128Z", Format::I4G128Z);
    m.def(
        "packed_bytes", [](Format format, int rows, int k) { return checked_bytes(format, rows, k); }, "format"_a,
        "rows"_a, "k"_a);
    m.def("pack", &pack, "format"_a, "rows"_a, "k"_a, "source"_a, "out"_a, "num_threads"_a = 1);
    m.def("unpack_row", [](Format f, int rows, int k, Bytes data, int row, MutableFloats out) {
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

}  // namespace freedive
