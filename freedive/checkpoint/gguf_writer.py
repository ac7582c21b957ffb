"""Writes GGUF files, version 3, in the layout that docs/gguf.md of ggml specifies."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.gguf import FORMAT_IDS
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.write import new_file
from freedive.errors import UserError

Scalar = str | bool | int | float
Value = Scalar | Sequence[Scalar]

_FLOAT, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_INTEGERS = {
    4: range(1 << 32),
    5: range(-1 << 31, 1 << 31),
    10: range(1 << 64),
    11: range(-1 << 63, 1 << 63),
}
_LAYOUTS = {4: "I", 5: "i", _FLOAT: "f", _BOOL: "?", 10: "Q", 11: "q"}
_IDS = {name: number for number, name in FORMAT_IDS.items()}


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> None:
    """Writes ``metadata`` and ``tensors`` in order; only one tensor is in memory at a time.

    Metadata floats are stored as float32. Integers have the first sufficient type of uint32, int32, uint64, int64; in
    arrays, of int32, uint32, int64, uint64. Raises UserError for a format that GGUF lacks, and Unavailable if the file
    cannot be written; then no file is left.
    """
    for name, tensor in tensors.items():
        if tensor.format not in _IDS:
            raise UserError(f"GGUF has no format for the tensor {name}, which is {tensor.format}", "Convert it first")
    alignment = metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)
    sizes = [_num_bytes(tensor) for tensor in tensors.values()]
    starts = [0]
    for size in sizes:
        starts.append(-(-(starts[-1] + size) // alignment) * alignment)
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + _value(value)
    for (name, tensor), start in zip(tensors.items(), starts, strict=False):
        header += _declaration(name, tensor, start)
    header += bytes(-len(header) % alignment)
    with new_file(path, "The GGUF file", len(header) + starts[-1], "choose a place on another disk") as file:
        file.write(header)
        for tensor, start in zip(tensors.values(), starts, strict=False):
            file.seek(len(header) + start)
            file.write(np.ascontiguousarray(tensor.data).data)
        file.truncate(len(header) + starts[-1])


def _num_bytes(tensor: Tensor) -> int:
    block, num_bytes = BLOCKS[tensor.format]
    return math.prod(tensor.shape) // block * num_bytes


def _declaration(name: str, tensor: Tensor, start: int) -> bytes:
    """Returns the declaration of a tensor: name, dimensions from the innermost, type, and offset in the data."""
    dims = tensor.shape[::-1] or (1,)
    return _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _IDS[tensor.format], start)


def _value(value: Value) -> bytes:
    """Returns the type and the bytes of a value; for an array, also the type and the number of its elements."""
    if isinstance(value, Scalar):
        kind = _kind([value], (4, 5, 10, 11))
        return struct.pack("<I", kind) + _elements([value], kind)
    kind = _kind(value, (5, 4, 11, 10))
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + _elements(value, kind)


def _kind(values: Sequence[Scalar], integers: Sequence[int]) -> int:
    """Returns the type of all ``values``; for integers and empty arrays, the first sufficient type of ``integers``."""
    if any(isinstance(value, str) for value in values):
        return _STRING
    if any(isinstance(value, float) for value in values):
        return _FLOAT
    if any(isinstance(value, bool) for value in values):
        return _BOOL
    return next(kind for kind in integers if all(value in _INTEGERS[kind] for value in values))


def _elements(values: Sequence[Scalar], kind: int) -> bytes:
    if kind == _STRING:
        return b"".join(map(_string, map(str, values)))
    return struct.pack(f"<{len(values)}{_LAYOUTS[kind]}", *values)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
