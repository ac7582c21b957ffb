"""Quantisation schemes as published by their authors: each converts the tensors of a weight to a block format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from freedive.arrays import Bytes, Floats
from freedive.checkpoint.block_formats import F8_BLOCK, encode_f8, encode_integers, integer_format
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.tensor import Tensor
from freedive.errors import UserError
from freedive.files import quote

_FLOATS = ("F32", "F16", "BF16")
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""For each of the eight outputs of a 32-bit word, the index of its nibble."""


@dataclass(frozen=True)
class QuantizedParts:
    """The tensors of the quantised weight ``name``: ``codes``, and those of ``tensors`` with the prefix ``stem``."""

    name: str
    codes: Tensor
    stem: str
    tensors: Mapping[str, Tensor]

    def find(self, ending: str) -> Tensor | None:
        return self.tensors.get(self.stem + ending)

    def need(self, ending: str, formats: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
        """Returns the tensor with this name ``ending``. Raises UserError if it is missing or its format or ``shape`` is
        wrong.
        """
        name = self.stem + ending
        tensor = self.tensors.get(name)
        if tensor is None:
            raise _misfit(f"The tensor {quote(name)} is missing, which {quote(self.codes.name)} needs")
        if tensor.format not in formats:
            raise _misfit(f"The tensor {quote(name)} is {tensor.format} instead of {' or '.join(formats)}")
        if tensor.shape != shape:
            raise _misfit(f"The tensor {quote(name)} is {list(tensor.shape)} instead of {list(shape)}")
        return tensor

    def matrix(self) -> tuple[int, int]:
        """Returns the shape of the codes. Raises UserError if they are not two-dimensional."""
        if len(self.codes.shape) != 2:
            raise self.unfit(f"has codes of the shape {list(self.codes.shape)}")
        return self.codes.shape[0], self.codes.shape[1]

    def unfit(self, what: str) -> UserError:
        return _misfit(f"The quantised weight {quote(self.name)} {what}")


Scheme = Callable[[QuantizedParts, Mapping[str, Any]], Tensor]
"""A function that combines (parts, quantization_config) into the weight. Raises UserError if the parts do not match."""


def f8(parts: QuantizedParts, quantization: Mapping[str, Any]) -> Tensor:
    """Combines e4m3 codes with a scale per block (128 x 128 unless configured otherwise), per row or per tensor."""
    if len(parts.codes.shape) < 2:
        raise parts.unfit(f"has codes of the shape {list(parts.codes.shape)}")
    *outer, rows, width = parts.codes.shape
    scale = parts.find("_scale_inv") or parts.find("_scale")
    if scale is None or scale.format not in (*_FLOATS, "F8_E8M0"):
        raise parts.unfit("needs float scales: a tensor ending in _scale_inv or _scale")
    for block in ((rows, width), (1, width), _block_size(parts, quantization)):
        grid = (*outer, -(-rows // block[0]), -(-width // block[1]))
        if _without_ones(scale.shape) == _without_ones(grid):
            break
    else:
        raise _misfit(f"The tensor {quote(scale.name)} is {list(scale.shape)} instead of {list(grid)}")
    if block[1] % F8_BLOCK and block[1] < width:
        raise parts.unfit(f"has a scale for every {block[1]} inputs instead of {F8_BLOCK}")

    def make(begin: int, end: int) -> Bytes:
        factors = _numbers(scale).reshape(-1, *grid[-2:])[..., np.arange(0, width, F8_BLOCK) // block[1]]
        matrix, row = np.divmod(np.arange(begin, end), rows)
        return encode_f8(parts.codes.rows(begin, end), factors[matrix, row // block[0]])

    return Tensor(parts.name, parts.codes.shape, "F8G128", make)


def mxfp4(parts: QuantizedParts, _: Mapping[str, Any]) -> Tensor:
    """Combines e2m1 codes, two per byte (the first in the low nibble), with an exponent per 32 codes.

    The tensors of gpt-oss have an additional axis for the groups.
    """
    codes = parts.codes
    scales = "_scales" if codes.name.endswith("_blocks") else "_scale"
    outer = codes.shape[:-2] if scales == "_scales" else codes.shape[:-1]
    width = 2 * math.prod(codes.shape[len(outer) :])
    if width % 32 or not outer:
        raise parts.unfit(f"has codes of the shape {list(codes.shape)}")
    exponents = parts.need(scales, ("U8", "F8_E8M0"), (*outer, width // 32))

    def make(begin: int, end: int) -> Bytes:
        pairs = codes.data.reshape(math.prod(outer), -1)[begin:end].reshape(-1, 16)
        low, high = np.split(_unpack(pairs, 4), 2, 1)
        blocks = np.concatenate([exponents.rows(begin, end).reshape(-1, 1), low | high << 4], 1)
        return blocks.reshape(end - begin, -1)

    return Tensor(parts.name, (*outer, width), "MXFP4", make)


class Integers(NamedTuple):
    """Weights scale * (code - zero): unsigned ``codes`` [rows, width], ``scales`` and ``zeros`` [rows, groups]."""

    codes: Bytes
    scales: Floats
    zeros: npt.NDArray[Any]


def packed(parts: QuantizedParts, quantization: Mapping[str, Any]) -> Tensor:
    """Combines packed weights of compressed-tensors.

    32-bit words pack unsigned codes along the inputs, and unsigned zero points along the outputs.
    """
    bits = _bits(parts, _declared(quantization, "num_bits"))
    per_word = 32 // bits
    rows, words = parts.matrix()
    width = words * per_word
    groups = _num_groups(parts, quantization, width)
    scales = parts.need("_scale", _FLOATS, (rows, groups))
    shape = parts.need("_shape", ("I64", "I32"), (2,))
    has_zero = parts.find("_zero_point") is not None
    offsets = parts.need("_zero_point", ("I32",), (-(-rows // per_word), groups)) if has_zero else None
    order = parts.need("_g_idx", ("I32",), (width,)) if parts.find("_g_idx") else None

    def read() -> Integers:
        if shape.data.view("<i8" if shape.format == "I64" else "<i4").tolist() != [[rows, width]]:
            raise parts.unfit(f"says that its shape is not [{rows}, {width}]")
        zeros = np.full((rows, groups), 1 << bits - 1, np.uint8)
        if offsets:
            columns = _unpack(offsets.data.reshape(-1, groups, 4), bits)
            zeros = columns.swapaxes(1, 2).reshape(-1, groups)[:rows]
        return Integers(_unpack(parts.codes.data, bits), dequantize(scales), zeros)

    return _integers(parts, (rows, width), bits, width // groups, has_zero, read, order)


def int8(parts: QuantizedParts, quantization: Mapping[str, Any]) -> Tensor:
    """Combines int8 weights of compressed-tensors, whose codes are signed bytes."""
    rows, width = parts.matrix()
    groups = _num_groups(parts, quantization, width)
    scales = parts.need("_scale", _FLOATS, (rows, groups))
    offsets = parts.need("_zero_point", ("I8",), (rows, groups)) if parts.find("_zero_point") else None

    def read() -> Integers:
        zeros = offsets.data ^ np.uint8(128) if offsets else np.full((rows, groups), 128, np.uint8)
        return Integers(parts.codes.data ^ np.uint8(128), dequantize(scales), zeros)

    return _integers(parts, (rows, width), 8, width // groups, offsets is not None, read)


def gptq_or_awq(parts: QuantizedParts, quantization: Mapping[str, Any]) -> Tensor:
    """Combines GPTQ or AWQ weights, which store matrices as [in, out]; only the configuration distinguishes them."""
    return (_awq if quantization.get("quant_method") == "awq" else _gptq)(parts, quantization)


def _gptq(parts: QuantizedParts, quantization: Mapping[str, Any]) -> Tensor:
    """Combines GPTQ weights: 32-bit words pack codes along the inputs, and zero points along the outputs.

    Version 1 stores each zero point minus one.
    """
    bits = _bits(parts, [quantization.get("bits")])
    words, rows = parts.matrix()
    width = words * 32 // bits
    group = _group_size(parts, quantization.get("group_size"), width)
    groups = -(-width // group)
    if rows * bits % 32:
        raise parts.unfit(f"has zero points of {rows} outputs, whose {bits} bits fill no whole words")
    scales = parts.need(".scales", _FLOATS, (groups, rows))
    offsets = parts.need(".qzeros", ("I32",), (groups, rows * bits // 32))
    order = parts.need(".g_idx", ("I32",), (width,)) if parts.find(".g_idx") else None
    symmetric = quantization.get("sym") is True
    less = np.uint16(quantization.get("checkpoint_format") != "gptq_v2")
    in_order = not quantization.get("desc_act")  # avoids reading every g_idx when the model is opened

    def read() -> Integers:
        codes = _unpack(parts.codes.data.reshape(words, rows, 4), bits).swapaxes(0, 1).reshape(rows, width)
        zeros = _unpack(offsets.data, bits).T + less
        if symmetric and (zeros != 1 << bits - 1).any():
            raise parts.unfit("is declared symmetric, but has zero points")
        if in_order and order and _scattered(order, group):
            raise parts.unfit("is declared to have its inputs in order, but has a g_idx")
        return Integers(codes, dequantize(scales).T, zeros)

    return _integers(parts, (rows, width), bits, group, not symmetric, read, None if in_order else order)


def _awq(parts: QuantizedParts, quantization: Mapping[str, Any]) -> Tensor:
    """Combines AWQ weights: 32-bit words pack codes and zero points along the outputs, in the order ``_AWQ_ORDER``."""
    if quantization.get("version", "gemm") != "gemm" or _bits(parts, [quantization.get("bits", 4)]) != 4:
        raise parts.unfit("is in a form of AWQ other than 4-bit gemm")
    width, words = parts.matrix()
    rows = words * 8
    group = _group_size(parts, quantization.get("group_size"), width)
    groups = -(-width // group)
    scales = parts.need(".scales", _FLOATS, (groups, rows))
    offsets = parts.need(".qzeros", ("I32",), (groups, words))

    def outputs(tensor: Tensor) -> Bytes:
        return _unpack(tensor.data.reshape(-1, words, 4), 4)[..., _AWQ_ORDER].reshape(-1, rows).T

    def read() -> Integers:
        return Integers(outputs(parts.codes), dequantize(scales).T, outputs(offsets))

    return _integers(parts, (rows, width), 4, group, True, read)


def _integers(
    parts: QuantizedParts,
    shape: tuple[int, int],
    bits: int,
    group: int,
    has_zero: bool,
    read: Callable[[], Integers],
    order: Tensor | None = None,
) -> Tensor:
    """Returns the weight in a lossless integer format, or as F16 if there is none or ``order`` scatters its groups."""
    width = shape[1]
    in_groups = width % group == 0 and not (order and _scattered(order, group))
    format = integer_format(bits, group, has_zero) if in_groups else None
    if format:
        return Tensor(parts.name, shape, format, lambda begin, end: encode_integers(format, *read())[begin:end])

    def make(begin: int, end: int) -> Bytes:
        codes, scales, zeros = read()
        of = order.data.view(np.int32)[0] if order else np.arange(width) // group
        if of.min() < 0 or of.max() >= scales.shape[1]:
            raise parts.unfit(f"has a g_idx beyond its {scales.shape[1]} groups")
        out = np.empty((end - begin, width), np.float16)
        with np.errstate(all="ignore"):  # packing refuses values that are not finite or overflow float16
            for row in range(begin, end):  # float32 values of all rows would take too much memory
                out[row - begin] = (codes[row].astype(np.float32) - zeros[row][of]) * scales[row][of]
        return out.view(np.uint8)

    return Tensor(parts.name, shape, "F16", make)


def _scattered(order: Tensor, group: int) -> bool:
    """Returns whether the inputs of a group are not consecutive."""
    of = order.data.view(np.int32)[0]
    return not np.array_equal(of, np.arange(len(of)) // group)


def _unpack(data: Bytes, bits: int) -> Bytes:
    """Unpacks bytes [..., n] into codes [..., 8 n / bits], the lowest bits first."""
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:-1], -1)


def _numbers(scale: Tensor) -> Floats:
    """Returns scales as float32, from any float type or from exponents: 2^(e - 127), NaN for e = 255."""
    if scale.format != "F8_E8M0":
        return dequantize(scale)
    exponents = scale.data.reshape(scale.shape)
    values: Floats = np.where(exponents == 255, np.nan, np.ldexp(1.0, exponents.astype(int) - 127)).astype(np.float32)
    return values


def _block_size(parts: QuantizedParts, quantization: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the numbers of outputs and inputs of a block, which share a scale."""
    declared = [quantization.get("weight_block_size"), *_declared(quantization, "block_structure")]
    size = next(filter(None, declared), [F8_BLOCK, F8_BLOCK])
    match size:
        case [int(rows), int(width)] if rows > 0 and width > 0:
            return rows, width
    raise parts.unfit(f"is configured with blocks of {quote(size)}")


def _declared(quantization: Mapping[str, Any], key: str) -> list[object]:
    """Returns the values of ``key`` in the weight descriptions of compressed-tensors; a model may have several."""
    groups = quantization.get("config_groups")
    found = groups.values() if isinstance(groups, dict) else ()
    schemes = [group.get("weights") for group in found if isinstance(group, dict)]
    values = [weights.get(key) for weights in schemes if isinstance(weights, dict)]
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _num_groups(parts: QuantizedParts, quantization: Mapping[str, Any], width: int) -> int:
    """Returns the number of scales per row. Raises UserError if no weight description allows this number."""
    scale = parts.find("_scale")
    groups = scale.shape[1] if scale and len(scale.shape) == 2 else 1
    sizes = [width if size in (None, -1) else size for size in _declared(quantization, "group_size")]
    if width % groups or width // groups not in sizes:
        raise parts.unfit(f"has {groups} groups for {width} inputs, and is configured with groups of {quote(sizes)}")
    return groups


def _bits(parts: QuantizedParts, declared: list[object]) -> int:
    match declared:
        case [int(bits)] if bits in (4, 8):
            return bits
    raise parts.unfit(f"is configured with {quote(declared)} bits instead of 4 or 8")


def _group_size(parts: QuantizedParts, declared: object, width: int) -> int:
    """Returns the number of inputs that share a scale; -1 in the configuration means all inputs."""
    if declared == -1:
        return width
    if type(declared) is not int or declared < 1:
        raise parts.unfit(f"is configured with groups of {quote(declared)}")
    return declared


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _misfit(what: str) -> UserError:
    return UserError(what, "The files are incomplete or damaged: fetch the model again")
