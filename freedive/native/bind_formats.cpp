// Python's view of weight formats: packing, unpacking, products of one packed weight, checksums. It converts types
// only.
#include <nanobind/stl/string.h>

#include "bind.h"
#include "checksum.h"
#include "cpu.h"
#include "multiply.h"

namespace freedive {
namespace {

bool pack(Format format, int rows, int k, Bytes source, MutableBytes out, int num_threads) {
    nb::gil_scoped_release released;
    return pack_matrix(format, view(source), rows, k, {out.data(), out.size()}, num_threads);
}

void multiply_packed(const std::string& isa, Format format, int rows, int k, Bytes packed,
                     nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> x, MutableFloats out,
                     bool in_bf16) {
    multiply(choose_kernels(isa), checked_weight(format, rows, k, view(packed)), int(x.shape(0)), {x.data(), x.size()},
             in_bf16, {out.data(), out.size()});
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
        .value("TQ2_0", Format::TQ2_0)
        .value("IQ1S", Format::IQ1S)
        .value("IQ1M", Format::IQ1M)
        .value("IQ2", Format::IQ2)
        .value("IQ3XXS", Format::IQ3XXS)
        .value("IQ3S", Format::IQ3S)
        .value("F4G16", Format::F4G16)
        .value("I4G64", Format::I4G64)
        .value("I4G128", Format::I4G128)
        .value("I8G128", Format::I8G128)
        .value("I4G32Z", Format::I4G32Z)
        .value("I4G64Z", Format::I4G64Z)
        .value("I4G128Z", Format::I4G128Z);
    m.def("packed_bytes", &checked_bytes, "format"_a, "rows"_a, "k"_a);
    m.def("pack", &pack, "format"_a, "rows"_a, "k"_a, "source"_a, "out"_a, "num_threads"_a = 1);
    m.def("unpack_row", [](Format f, int rows, int k, Bytes packed, int row, MutableFloats out) {
        unpack_row(checked_weight(f, rows, k, view(packed)), row, {out.data(), out.size()});
    });
    m.def("multiply", &multiply_packed, "isa"_a, "format"_a, "rows"_a, "k"_a, "packed"_a, "x"_a, "out"_a,
          "in_bf16"_a = false);
    m.def(
        "checksum",
        [](Bytes data) {
            nb::gil_scoped_release released;
            return checksum(view(data));
        },
        "data"_a);
}

}  // namespace freedive
