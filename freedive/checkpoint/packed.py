"""Weights in the layout that the kernels read: see native/formats/format.h.

Weights are packed into records: one tensor, or all weights of one expert of one layer, so that one read fetches it. A
:class:`freedive.checkpoint.weight_store.WeightStore` holds a model's records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from freedive.arrays import Bytes
from freedive.checkpoint.dequantize import FLOATS, as_floats, dequantize
from freedive.checkpoint.tensor import Tensor
from freedive.errors import UserError
from freedive.files import quote
from freedive.model.params import expert_of
from freedive.native import _native

FORMATS: Mapping[str, _native.Format] = _native.Format.__members__
"""The formats that kernels read, by the names that stores have them under."""

LAYOUT = "r16k4-3"
"""Name of the layout; a change makes old stores foreign."""

ALIGNMENT = 4096
LINE = 64
MAX_DIM = 1 << 24
"""Of a stored tensor: its bytes are far from what 64 bits can count."""


@dataclass(frozen=True)
class PackedTensor:
    """A weight of the store. ``data`` is uint8, flat; ``shape`` is logical.

    A matrix [out, in] is panels in its own format, a vector plain float32. Heads [heads, out, in] are one matrix of
    floats after another, each in whole panels.
    """

    format: str
    shape: tuple[int, ...]
    data: Bytes


class Part(NamedTuple):
    """One weight of a record, ``offset`` bytes from its start."""

    format: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class PackedExperts:
    """The experts of a layer, one record each: that of expert e begins at byte e * ``stride`` of ``data``.

    All records have the same ``parts``: gate, up, down, and where there are any, biases (gate_bias, ...).
    """

    count: int
    stride: int
    parts: dict[str, Part]
    data: Bytes

    def part(self, expert: int, name: str) -> PackedTensor:
        """One weight of one expert, in place."""
        format, shape, offset = self.parts[name]
        begin = expert * self.stride + offset
        return PackedTensor(format, shape, self.data[begin : begin + packed_bytes(format, shape)])


Packed = PackedTensor | PackedExperts


def pack(tensor: Tensor, *, num_threads: int = 1) -> PackedTensor:
    """A matrix as panels in its own format; a vector as float32. Lossless.

    Raises UserError for a scale or a float that is NaN or infinite.
    """
    if len(tensor.shape) == 1:
        values = dequantize(tensor).astype(np.float32)
        if not np.isfinite(values).all():
            raise _not_finite(tensor)
        return PackedTensor("F32", tensor.shape, values.view(np.uint8))
    if len(tensor.shape) == 3:
        return _pack_heads(tensor, num_threads)
    format = FORMATS[tensor.format]
    rows, k = tensor.shape
    out = empty_aligned(_native.packed_bytes(format, rows, k))
    if not _native.pack(format, rows, k, np.ascontiguousarray(tensor.data).reshape(-1), out, num_threads):
        raise _not_finite(tensor)
    return PackedTensor(tensor.format, tensor.shape, out)


def _not_finite(tensor: Tensor) -> UserError:
    return UserError(
        f"The weight {quote(tensor.name)} holds NaN or infinite numbers", "The file is damaged: fetch the model again"
    )


def _pack_heads(tensor: Tensor, num_threads: int) -> PackedTensor:
    """Floats stay what they are and the rest becomes F16: kernels multiply these weights from either side."""
    data, format = as_floats(tensor).data, _packed_format(tensor)
    out = empty_aligned(packed_bytes(format, tensor.shape))
    for rows, panels in zip(np.split(data, tensor.shape[0]), np.split(out, tensor.shape[0]), strict=True):
        panels[:] = pack(Tensor(tensor.name, tensor.shape[1:], format, rows), num_threads=num_threads).data
    return PackedTensor(format, tensor.shape, out)


def store_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What the packed tensors take."""
    return sum(entry.num_bytes for entry in layout_of(tensors).values())


class Entry(NamedTuple):
    """What a store holds under one name: records of ``stride`` bytes, alike in their parts.

    A tensor that is no expert's is one record of one part, which has no name. ``offset`` counts from the first entry.
    """

    records: list[dict[str, Tensor]]
    parts: dict[str, Part]
    stride: int
    offset: int

    @property
    def num_bytes(self) -> int:
        return len(self.records) * self.stride

    def header(self) -> dict[str, Any]:
        """As JSON, with room for the checksums."""
        checksums = [0] * len(self.records)
        return {"stride": self.stride, "parts": self.parts, "checksums": checksums}


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Entries by name; the tensors of a layer's experts are together in one."""
    records: dict[str, list[dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        entry, index, part = expert_of(name) or (name, 0, "")
        experts = records.setdefault(entry, [])
        if index == len(experts):
            experts.append({})
        experts[-1][part] = tensor
    entries: dict[str, Entry] = {}
    offset = 0
    for entry, experts in records.items():
        parts, stride = _record_layout(experts)
        entries[entry] = Entry(experts, parts, stride, offset)
        offset += entries[entry].num_bytes
    return entries


def _record_layout(records: list[dict[str, Tensor]]) -> tuple[dict[str, Part], int]:
    """Where the parts of each of the ``records`` lie, and how long a record is."""
    parts: dict[str, Part] = {}
    offset = 0
    for key, tensor in records[0].items():
        parts[key] = Part(_packed_format(tensor), tensor.shape, offset)
        offset = aligned(offset + packed_bytes(parts[key].format, tensor.shape), LINE)
    for record in records:
        for key, tensor in record.items():
            if _packed_format(tensor) != parts[key].format:
                what = f"{tensor.name} is {tensor.format}, but of the layer's first expert it is {parts[key].format}"
                raise UserError(f"The weight {what}", "Choose a file of this model whose experts have one format")
    return parts, aligned(offset, ALIGNMENT)


def _packed_format(tensor: Tensor) -> str:
    if len(tensor.shape) == 1:
        return "F32"
    return tensor.format if len(tensor.shape) == 2 or tensor.format in FLOATS else "F16"


def packed_bytes(format: str, shape: tuple[int, ...]) -> int:
    if len(shape) == 1:
        return 4 * shape[0]
    return math.prod(shape[:-2]) * _native.packed_bytes(FORMATS[format], *shape[-2:])


def alone(packed: PackedExperts) -> Packed:
    """``packed``, or the tensor that it is if it is no expert's."""
    return packed.part(0, "") if "" in packed.parts else packed


def aligned(offset: int, alignment: int = ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment


def empty_aligned(num_bytes: int) -> Bytes:
    """Uninitialised bytes at an address that the kernels' lines need."""
    memory = np.empty(num_bytes + 64, np.uint8)
    shift = -memory.ctypes.data % 64
    return memory[shift : shift + num_bytes]
