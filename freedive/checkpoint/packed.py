"""The packed store: a model's weights in the layout that the kernels read, made once and then mapped.

    magic | header length, uint64 | header checksum, uint64 | header JSON | records, each of whole 4 KiB pages

A record is one tensor, or one expert of one layer: all its weights, so that one read fetches it. The layouts of weights
are in native/formats/format.h. A store appears under its name only when whole; every record has a checksum.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from freedive.checkpoint.dequantize import FLOATS, as_floats, dequantize
from freedive.checkpoint.file import BLOCKS, parse_json, quote
from freedive.checkpoint.tensor import Bytes, Tensor
from freedive.checkpoint.write import OTHER_DISK, HugePages, new_file
from freedive.errors import UserError
from freedive.native import _native
from freedive.progress import Advance

FORMATS = {
    name: number
    for number, name in enumerate(
        (
            *("F32", "F16", "BF16", "F8G128", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
            *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
            *("I4G64", "I4G128", "I8G128", "I4G32Z", "I4G64Z", "I4G128Z"),
        )
    )
}
"""Format name -> its number in native/formats/format.h."""

LAYOUT = "r16k4-3"
"""Name of the layout; a change makes old stores foreign."""

MAGIC = b"freedive packed\n"
ALIGNMENT = 4096
LINE = 64
_MAX_DIM = 1 << 24
"""Of a stored tensor: its bytes are far from what 64 bits can count."""

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")


@dataclass(frozen=True)
class PackedTensor:
    """``data`` uint8, flat. ``shape`` is logical.

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
        return PackedTensor(format, shape, self.data[begin : begin + _packed_bytes(format, shape)])


Packed = PackedTensor | PackedExperts


class DamagedStore(Exception):
    """A store that is cut short, altered, or of another layout; packing again repairs it."""


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
    number = FORMATS[tensor.format]
    rows, k = tensor.shape
    out = _empty_aligned(_native.packed_bytes(number, rows, k))
    if not _native.pack(number, rows, k, np.ascontiguousarray(tensor.data).reshape(-1), out, num_threads):
        raise _not_finite(tensor)
    return PackedTensor(tensor.format, tensor.shape, out)


def _not_finite(tensor: Tensor) -> UserError:
    return UserError(
        f"The weight {quote(tensor.name)} holds NaN or infinite numbers", "The file is damaged: fetch the model again"
    )


def _pack_heads(tensor: Tensor, num_threads: int) -> PackedTensor:
    """Floats stay what they are and the rest becomes F16: kernels multiply these weights from either side."""
    data, format = as_floats(tensor).data, _packed_format(tensor)
    out = _empty_aligned(_packed_bytes(format, tensor.shape))
    for rows, panels in zip(np.split(data, tensor.shape[0]), np.split(out, tensor.shape[0]), strict=True):
        panels[:] = pack(Tensor(tensor.name, tensor.shape[1:], format, rows), num_threads=num_threads).data
    return PackedTensor(format, tensor.shape, out)


def pack_model(tensors: Mapping[str, Tensor], *, num_threads: int = 1) -> dict[str, Packed]:
    """What a store of ``tensors`` gives when it is opened, in memory."""
    model: dict[str, Packed] = {}
    for name, entry in _layout(tensors).items():
        packed = PackedExperts(len(entry.records), entry.stride, entry.parts, _empty_aligned(entry.num_bytes))
        for index, record in enumerate(entry.records):
            for key, tensor in record.items():
                packed.part(index, key).data[:] = pack(tensor, num_threads=num_threads).data
        model[name] = _alone(packed)
    return model


def write_store(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    num_threads: int = 1,
    advance: Advance = lambda count: None,
    otherwise: str = OTHER_DISK,
    code: str = "",
) -> None:
    """Pack every tensor into a new store at ``path``. Raises Unavailable where it cannot be written, leaving nothing.

    ``advance`` is told the bytes written, of :func:`store_bytes` in all. ``otherwise`` is what a user may do who cannot
    make room. ``code`` is the digest of what made the tensors: see :func:`open_store`.
    """
    entries = _layout(tensors)
    headers = {name: entry.header() for name, entry in entries.items()}
    start = _aligned(len(json.dumps(headers)) + 20 * len(tensors) + ALIGNMENT)  # checksums are not known yet
    total = sum(entry.num_bytes for entry in entries.values())
    with new_file(path, "The packed model", total, otherwise) as file:
        pages = HugePages(file)
        for name, entry in entries.items():
            for index, record in enumerate(entry.records):
                checksums = []
                for key, tensor in record.items():
                    data = pack(tensor, num_threads=num_threads).data
                    pages.write(start + entry.offset + index * entry.stride + entry.parts[key].offset, data)
                    checksums.append(_native.checksum(data))
                headers[name]["checksums"][index] = _joined(checksums)
                advance(entry.stride)
        pages.flush()
        file.truncate(start + total)
        _write_header(file, {"layout": LAYOUT, "code": code, "start": start, "tensors": headers})


def remove_others(store: Path) -> None:
    """Delete the stores and descriptions in the folder of ``store`` that were made before it, of the same model.

    Who runs one of them keeps it until the end.
    """
    for path in store.parent.iterdir():
        if path.suffix in (".fdv", ".json") and path.stem != store.stem:
            with contextlib.suppress(OSError):
                path.unlink()


def store_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What the packed tensors take."""
    return sum(entry.num_bytes for entry in _layout(tensors).values())


def open_store(path: Path, *, proven: bool = False, code: str | None = None) -> dict[str, Packed]:
    """The tensors of a store, mapped; ``proven``: it is as it was when written or last verified.

    With ``code`` it must have been made by the code of this digest: what it makes differently reaches who has a store.
    Raises DamagedStore, or FileNotFoundError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = np.frombuffer(_mapped(file, size) if size else b"", np.uint8)
    header = _read_header(path, data)
    if code is not None and header.get("code") != code:
        raise DamagedStore("other code has made it")
    model = {}
    end = _place(header.get("start"), "start", ALIGNMENT)
    for name, entry in _object(header.get("tensors"), "tensors").items():
        packed = _records(name, entry, data[end:])
        end += len(packed.data)
        if not proven and _checksums(packed) != entry["checksums"]:
            raise DamagedStore(f"{name} is damaged")
        model[name] = _alone(packed)
    return model


def _records(name: str, header: Any, rest: Bytes) -> PackedExperts:
    """An entry from its header, each of whose numbers is checked, and the ``rest`` of the file: it comes first."""
    entry, what = _object(header, name), quote(name)
    checksums, parts = entry.get("checksums"), {}
    stride = _place(entry.get("stride"), f"the stride of {what}", ALIGNMENT)
    if not isinstance(checksums, list) or not checksums or len(checksums) * stride > len(rest):
        raise DamagedStore(f"{what} does not lie in the file")
    for key, part in _object(entry.get("parts"), name).items():
        parts[key] = _part(f"{what} {key}".rstrip(), part, stride)
    if ("" in parts and (len(parts), len(checksums)) != (1, 1)) or not parts:
        raise DamagedStore(f"{what} is neither a tensor nor experts")
    return PackedExperts(len(checksums), stride, parts, rest[: len(checksums) * stride])


def _part(what: str, value: Any, stride: int) -> Part:
    match value:
        case [str(format), [_, *_] as shape, offset] if format in FORMATS and len(shape) <= 3 and _are_dims(shape):
            dims = tuple(shape)
        case _:
            raise DamagedStore(f"{what} is described by {quote(value)}")
    blocks = 1 if format == "F8G128" else BLOCKS[format][0]  # whose last block is filled up
    if (len(dims) != 2 and format not in FLOATS) or (len(dims) == 1 and format != "F32") or dims[-1] % blocks:
        raise DamagedStore(f"{what} cannot be {format} {list(dims)}")
    if _place(offset, f"the offset of {what}", LINE) + _packed_bytes(format, dims) > stride:
        raise DamagedStore(f"{what} ends beyond its record, of {stride} bytes")
    return Part(format, dims, offset)


def _are_dims(shape: list[Any]) -> bool:
    return all(type(dim) is int and 0 < dim <= _MAX_DIM for dim in shape)


def _place(value: Any, what: str, alignment: int) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63 or value % alignment:
        raise DamagedStore(f"{what} is {quote(value)}, not a multiple of {alignment}")
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedStore(f"{quote(what)} is described by {quote(value)}")
    return value


def _mapped(file: BinaryIO, size: int) -> mmap.mmap:
    """The file's bytes, in huge pages as far as the system has them for files (Linux 6.16 on ext4, earlier on XFS)."""
    mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError, OSError):  # another system, or a kernel without huge pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


class _Entry(NamedTuple):
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


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, _Entry]:
    """Entries by name; the tensors of a layer's experts are together in one."""
    records: dict[str, list[dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        entry, index, part = match.groups() if (match := _EXPERT.fullmatch(name)) else (name, "0", "")
        experts = records.setdefault(entry, [])
        if int(index) == len(experts):
            experts.append({})
        experts[-1][part] = tensor
    entries: dict[str, _Entry] = {}
    offset = 0
    for entry, experts in records.items():
        parts, stride = _record_layout(experts)
        entries[entry] = _Entry(experts, parts, stride, offset)
        offset += entries[entry].num_bytes
    return entries


def _record_layout(records: list[dict[str, Tensor]]) -> tuple[dict[str, Part], int]:
    """Where the parts of each of the ``records`` lie, and how long a record is."""
    parts: dict[str, Part] = {}
    offset = 0
    for key, tensor in records[0].items():
        parts[key] = Part(_packed_format(tensor), tensor.shape, offset)
        offset = _aligned(offset + _packed_bytes(parts[key].format, tensor.shape), LINE)
    for record in records:
        for key, tensor in record.items():
            if _packed_format(tensor) != parts[key].format:
                what = f"{tensor.name} is {tensor.format}, but of the layer's first expert it is {parts[key].format}"
                raise UserError(f"The weight {what}", "Choose a file of this model whose experts have one format")
    return parts, _aligned(offset, ALIGNMENT)


def _packed_format(tensor: Tensor) -> str:
    if len(tensor.shape) == 1:
        return "F32"
    return tensor.format if len(tensor.shape) == 2 or tensor.format in FLOATS else "F16"


def _packed_bytes(format: str, shape: tuple[int, ...]) -> int:
    if len(shape) == 1:
        return 4 * shape[0]
    return math.prod(shape[:-2]) * _native.packed_bytes(FORMATS[format], *shape[-2:])


def _alone(packed: PackedExperts) -> Packed:
    """``packed``, or the tensor that it is if it is no expert's."""
    return packed.part(0, "") if "" in packed.parts else packed


def _write_header(file: BinaryIO, header: Mapping[str, Any]) -> None:
    text = json.dumps(header).encode()
    sizes = np.array([len(text), _native.checksum(np.frombuffer(text, np.uint8))], np.uint64)
    file.seek(0)
    file.write(MAGIC + sizes.tobytes() + text)


def _read_header(path: Path, data: Bytes) -> dict[str, Any]:
    begin = len(MAGIC) + 16
    if len(data) < begin or data[: len(MAGIC)].tobytes() != MAGIC:
        raise DamagedStore("it is not a packed store")
    length, checksum = (int(x) for x in data[len(MAGIC) : begin].view(np.uint64))
    text = data[begin : begin + length]
    if len(text) != length or _native.checksum(text) != checksum:
        raise DamagedStore("its header is damaged")
    header = parse_json(path, text.tobytes())
    if header.get("layout") != LAYOUT:
        raise DamagedStore(f"its layout is {quote(header.get('layout'))}")
    return header


def _checksums(packed: PackedExperts) -> list[int]:
    """Of each record, of its parts in order."""
    return [
        _joined([_native.checksum(packed.part(index, key).data) for key in packed.parts])
        for index in range(packed.count)
    ]


def _joined(checksums: list[int]) -> int:
    return checksums[0] if len(checksums) == 1 else _native.checksum(np.array(checksums, np.uint64).view(np.uint8))


def _aligned(offset: int, alignment: int = ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment


def _empty_aligned(num_bytes: int) -> Bytes:
    """Uninitialised bytes at an address that the kernels' lines need."""
    memory = np.empty(num_bytes + 64, np.uint8)
    shift = -memory.ctypes.data % 64
    return memory[shift : shift + num_bytes]
