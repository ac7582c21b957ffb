"""Weights in the layout that the kernels read: see native/formats/format.h.

Weights are packed into records. A record is one tensor, or all weights of one expert of one layer, so that one read
loads the expert. A :class:`freedive.checkpoint.weight_store.WeightStore` contains the records of a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from freedive.arrays import Bytes
from freedive.checkpoint.dequantize import FLOATS, as_floats, dequantize
from freedive.checkpoint.repack import packed_format, repacked
from freedive.checkpoint.tensor import Tensor
from freedive.errors import UserError
from freedive.files import quote
from freedive.model.params import expert_of
from freedive.native import _native

FORMATS: Mapping[str, _native.Format] = _native.Format.__members__
"""Format name in a store -> format of the kernels."""

LAYOUT = "r16k4-3"
"""Name of the layout; stores with another name are packed again."""

ALIGNMENT = 4096
LINE = 64
MAX_DIM = 1 << 24
"""Maximum size of a dimension of a stored tensor, so that its number of bytes cannot overflow 64 bits."""


@dataclass(frozen=True)
class PackedTensor:
    """A packed weight. ``data`` is one-dimensional uint8; ``shape`` is logical.

    A matrix [out, in] is stored as panels in its format, a vector as float32. Heads [heads, out, in] are stored as one
    matrix of floats after another, each in whole panels.
    """

    format: str
    shape: tuple[int, ...]
    data: Bytes


class Part(NamedTuple):
    """One weight of a record, at ``offset`` bytes from the start of the record."""

    format: str
    shape: tuple[int, ...]
    offset: int


class StoredRecords(NamedTuple):
    """Where the records of an entry are on disk: they begin at ``offset`` of the file ``path``."""

    path: Path
    offset: int
    checksums: list[int]


@dataclass(frozen=True)
class PackedExperts:
    """The experts of a layer, one record each; the record of expert e begins at byte e * ``stride`` of ``data``.

    All records have the same ``parts``: gate, up, down, and biases (gate_bias, ...) if the model has them.
    ``stored`` is None if the records are in memory only.
    """

    count: int
    stride: int
    parts: dict[str, Part]
    data: Bytes
    stored: StoredRecords | None = None

    def part(self, expert: int, name: str) -> PackedTensor:
        """Returns one weight of one expert as a view of ``data``."""
        format, shape, offset = self.parts[name]
        begin = expert * self.stride + offset
        return PackedTensor(format, shape, self.data[begin : begin + packed_bytes(format, shape)])


Packed = PackedTensor | PackedExperts


def pack(tensor: Tensor, *, num_threads: int = 1) -> PackedTensor:
    """Packs a matrix into panels of its format, or a vector into float32, without loss.

    Raises UserError if a scale or a float is NaN or infinite.
    """
    if len(tensor.shape) == 1:
        values = dequantize(tensor).astype(np.float32)
        if not np.isfinite(values).all():
            raise _not_finite(tensor)
        return PackedTensor("F32", tensor.shape, values.view(np.uint8))
    if len(tensor.shape) == 3:
        return _pack_heads(tensor, num_threads)
    source, format = repacked(tensor, num_threads=num_threads), packed_format(tensor.format)
    kind, rows, k = FORMATS[format], *tensor.shape
    out = empty_aligned(_native.packed_bytes(kind, rows, k))
    if not _native.pack(kind, rows, k, np.ascontiguousarray(source.data).reshape(-1), out, num_threads):
        raise _not_finite(tensor)
    return PackedTensor(format, tensor.shape, out)


def _not_finite(tensor: Tensor) -> UserError:
    return UserError(
        f"The weight {quote(tensor.name)} has NaN or infinite values", "The file is damaged: fetch the model again"
    )


def _pack_heads(tensor: Tensor, num_threads: int) -> PackedTensor:
    """Packs heads [heads, out, in]; formats other than floats become F16, because kernels multiply from both sides."""
    data, format = as_floats(tensor).data, _packed_format(tensor)
    out = empty_aligned(packed_bytes(format, tensor.shape))
    for rows, panels in zip(np.split(data, tensor.shape[0]), np.split(out, tensor.shape[0]), strict=True):
        panels[:] = pack(Tensor(tensor.name, tensor.shape[1:], format, rows), num_threads=num_threads).data
    return PackedTensor(format, tensor.shape, out)


def store_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Returns the number of bytes of the packed ``tensors``."""
    return sum(entry.num_bytes for entry in layout_of(tensors).values())


class Entry(NamedTuple):
    """One entry of a store: records of ``stride`` bytes with the same parts.

    A tensor that does not belong to an expert is one record with one part, whose name is empty. ``offset`` is relative
    to the first entry.
    """

    records: list[dict[str, Tensor]]
    parts: dict[str, Part]
    stride: int
    offset: int

    @property
    def num_bytes(self) -> int:
        return len(self.records) * self.stride

    def header(self) -> dict[str, Any]:
        """Returns the entry as JSON values, with zeros in place of the checksums."""
        checksums = [0] * len(self.records)
        return {"stride": self.stride, "parts": self.parts, "checksums": checksums}


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Returns the entries of a store of ``tensors`` by name; the experts of a layer are one entry."""
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
    """Returns the parts of each of the ``records``, with their offsets, and the size of a record in bytes."""
    parts: dict[str, Part] = {}
    offset = 0
    for key, tensor in records[0].items():
        parts[key] = Part(_packed_format(tensor), tensor.shape, offset)
        offset = aligned(offset + packed_bytes(parts[key].format, tensor.shape), LINE)
    for record in records:
        for key, tensor in record.items():
            if _packed_format(tensor) != parts[key].format:
                what = f"{tensor.name} is {tensor.format}, but in the layer's first expert it is {parts[key].format}"
                raise UserError(f"The weight {what}", "Choose a file of this model whose experts have one format")
    return parts, aligned(offset, ALIGNMENT)


def _packed_format(tensor: Tensor) -> str:
    if len(tensor.shape) == 1:
        return "F32"
    return packed_format(tensor.format) if len(tensor.shape) == 2 or tensor.format in FLOATS else "F16"


def packed_bytes(format: str, shape: tuple[int, ...]) -> int:
    if len(shape) == 1:
        return 4 * shape[0]
    return math.prod(shape[:-2]) * _native.packed_bytes(FORMATS[format], *shape[-2:])


def alone(packed: PackedExperts) -> Packed:
    """Returns ``packed``, or its only tensor if it does not consist of experts."""
    return packed.part(0, "") if "" in packed.parts else packed


def aligned(offset: int, alignment: int = ALIGNMENT) -> int:
    """Returns the smallest multiple of ``alignment`` that is not less than ``offset``."""
    return -(-offset // alignment) * alignment


def empty_aligned(num_bytes: int) -> Bytes:
    """Returns uninitialised bytes at an address that is a multiple of 64, which the kernels need."""
    memory = np.empty(num_bytes + 64, np.uint8)
    shift = -memory.ctypes.data % 64
    return memory[shift : shift + num_bytes]
