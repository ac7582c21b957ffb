"""The packed store: a model's weights in the layout that the kernels read, made once and then mapped.

    magic | header length, uint64 | header checksum, uint64 | header JSON | tensors, each 4 KiB-aligned

The layouts are in native/formats/format.h. A store appears under its name only when whole; every tensor has a checksum.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.tensor import Tensor
from freedive.errors import Unavailable
from freedive.native import _native
from freedive.progress import Advance

FORMATS = {
    name: number
    for number, name in enumerate(
        ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
    )
}
"""Format name -> its number in native/formats/format.h."""

LAYOUT = "r16k4-1"
"""Name of the layout; a change makes old stores foreign."""

MAGIC = b"freedive packed\n"
ALIGNMENT = 4096
CHECKED_BYTES = 4 << 30
"""Stores up to this size have every checksum verified when opened; of larger ones, the header and the size."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PackedTensor:
    """``data`` uint8, flat: panels for a matrix [out, in], plain float32 for a vector. ``shape`` is logical."""

    format: str
    shape: tuple[int, ...]
    data: Bytes


@dataclass(frozen=True)
class Part:
    format: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class PackedExperts:
    count: int
    stride: int
    parts: dict[str, Part]
    data: Bytes


class DamagedStore(Exception):
    """A store that is cut short, altered, or of another layout; packing again mends it."""


def pack(tensor: Tensor, *, num_threads: int = 1) -> PackedTensor:
    """A matrix as panels in its own format; a vector as float32. Lossless."""
    if len(tensor.shape) == 1:
        return PackedTensor("F32", tensor.shape, dequantize(tensor).astype(np.float32).view(np.uint8))
    number = FORMATS[tensor.format]
    rows, k = tensor.shape
    out = _empty_aligned(_native.packed_bytes(number, rows, k))
    _native.pack(number, rows, k, np.ascontiguousarray(tensor.data).reshape(-1), out, num_threads)
    return PackedTensor(tensor.format, tensor.shape, out)


def write_store(
    path: Path, tensors: Mapping[str, Tensor], *, num_threads: int = 1, advance: Advance = lambda count: None
) -> None:
    """Pack every tensor into a new store at ``path``. Raises Unavailable where it cannot be written, leaving nothing.

    ``advance`` is told the bytes written, of :func:`store_bytes` in all.
    """
    entries = _layout(tensors)
    header_room = len(json.dumps(entries)) + 20 * len(entries) + ALIGNMENT  # checksums are not known yet
    start = _aligned(header_room)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    _sweep(path.parent)
    try:
        with temporary.open("wb") as file:
            for name, entry in entries.items():
                packed = pack(tensors[name], num_threads=num_threads)
                file.seek(start + entry["offset"])
                file.write(packed.data.data)
                entry["checksum"] = _checksum(packed.data)
                advance(entry["bytes"])
            _write_header(file, start, entries)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        room = store_bytes(tensors) / 2**30
        raise Unavailable(
            f"The packed model cannot be written to {path.parent}: {error.strerror}",
            f"Make room for {room:.1f} GiB, or set FREEDIVE_HOME to a folder on another disk",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed while they packed have left."""
    for left in folder.glob("*.partial"):
        try:
            os.kill(int(left.name.split(".")[-2].partition("-")[0]), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except PermissionError:  # it is alive, and another user's
            continue


def store_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What the packed tensors take."""
    return sum(entry["bytes"] for entry in _layout(tensors).values())


def open_store(path: Path) -> dict[str, PackedTensor]:
    """The tensors of a store, mapped. Raises DamagedStore, or FileNotFoundError."""
    size = path.stat().st_size
    data: Bytes = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    start, entries = _read_header(data)
    tensors = {}
    check = size <= CHECKED_BYTES
    for name, entry in entries.items():
        begin = start + entry["offset"]
        part = data[begin : begin + entry["bytes"]]
        if len(part) != entry["bytes"] or (check and _checksum(part) != entry["checksum"]):
            raise DamagedStore(f"{name} is damaged")
        tensors[name] = PackedTensor(entry["format"], tuple(entry["shape"]), part)
    return tensors


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Format, shape, size and place (from the first tensor) of each tensor."""
    entries: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, tensor in tensors.items():
        matrix = len(tensor.shape) == 2
        num_bytes = (
            _native.packed_bytes(FORMATS[tensor.format], *tensor.shape) if matrix else 4 * math.prod(tensor.shape)
        )
        kind = tensor.format if matrix else "F32"
        entries[name] = {"format": kind, "shape": tensor.shape, "offset": offset, "bytes": num_bytes}
        offset = _aligned(offset + num_bytes)
    return entries


def _write_header(file: BinaryIO, start: int, entries: Mapping[str, Any]) -> None:
    text = json.dumps({"layout": LAYOUT, "start": start, "tensors": entries}).encode()
    sizes = np.array([len(text), _checksum(np.frombuffer(text, np.uint8))], np.uint64)
    file.seek(0)
    file.write(MAGIC + sizes.tobytes() + text)


def _read_header(data: Bytes) -> tuple[int, dict[str, Any]]:
    begin = len(MAGIC) + 16
    if len(data) < begin or data[: len(MAGIC)].tobytes() != MAGIC:
        raise DamagedStore("it is not a packed store")
    length, checksum = (int(x) for x in data[len(MAGIC) : begin].view(np.uint64))
    text = data[begin : begin + length]
    if len(text) != length or _checksum(text) != checksum:
        raise DamagedStore("its header is damaged")
    header = json.loads(text.tobytes())
    if header["layout"] != LAYOUT:
        raise DamagedStore(f"its layout is {header['layout']}")
    return header["start"], header["tensors"]


def _checksum(data: Bytes) -> int:
    """Sum of the 64-bit words and of the bytes that are left: at memory speed, and any changed bit changes it."""
    whole = len(data) // 8 * 8
    words = int(np.add.reduce(data[:whole].view(np.uint64), dtype=np.uint64))
    return (words + int(np.add.reduce(data[whole:], dtype=np.uint64)) + len(data)) % 2**64


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _empty_aligned(num_bytes: int) -> Bytes:
    """Uninitialised bytes at an address that the kernels' lines need."""
    memory = np.empty(num_bytes + 64, np.uint8)
    shift = -memory.ctypes.data % 64
    return memory[shift : shift + num_bytes]
