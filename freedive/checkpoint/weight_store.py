"""The weight store: the packed weights of a model, written once and then mapped.

    magic | header length, uint64 | header checksum, uint64 | header JSON | records, each of whole 4 KiB pages

A store gets its file name when it is complete. Every record has a checksum.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from io import RawIOBase
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import numpy as np

from freedive.arrays import Bytes
from freedive.checkpoint.dequantize import FLOATS
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.packed import (
    ALIGNMENT,
    FORMATS,
    LAYOUT,
    LINE,
    MAX_DIM,
    Packed,
    PackedExperts,
    PackedTensor,
    Part,
    StoredRecords,
    aligned,
    alone,
    empty_aligned,
    layout_of,
    pack,
    packed_bytes,
)
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.write import OTHER_DISK, HugePages, new_file
from freedive.files import parse_json, quote
from freedive.native import _native
from freedive.progress import Advance

MAGIC = b"freedive packed\n"
READ_AHEAD_BYTES = 128 << 10
"""Bytes that the system is told at once to read ahead; Linux reads no more of one advice than its usual read-ahead."""


class DamagedStore(Exception):
    """A store is truncated, changed or of another layout; packing the model again repairs it."""


class WeightStore(Mapping[str, Packed]):
    """The packed weights of a model by canonical name; the experts of a layer are one entry.

    ``path`` is the file that is mapped as ``mapping``; both are None if the weights were packed in memory.
    """

    def __init__(
        self, entries: Mapping[str, Packed], path: Path | None = None, mapping: mmap.mmap | None = None, inode: int = 0
    ) -> None:
        self.path = path
        self._mapping = mapping
        self._inode = inode
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Packed:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights, in memory and on disk."""
        return sum(self.bytes_by_part().values())

    def bytes_by_part(self) -> dict[str, int]:
        """Returns the bytes of the embedding, of the routed experts, and of all other weights (dense)."""
        sizes = {"embedding": 0, "experts": 0, "dense": 0}
        for name, packed in self._entries.items():
            sizes[_part_of(name, packed)] += packed.data.nbytes
        return sizes

    def without_mapping(self, mapped: Collection[str] = ()) -> WeightStore:
        """Returns the store with its weights in anonymous memory, which is not evicted.

        The routed experts and the entries ``mapped`` stay mapped. Raises DamagedStore if the file has become shorter or
        is another one than the mapped one, and OSError if it cannot be read.
        """
        assert self.path
        with self.path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                raise DamagedStore("another file has replaced it while it was loaded")
            entries = {
                name: packed if name in mapped or isinstance(packed, PackedExperts) else self._read(file, packed)
                for name, packed in self.items()
            }
        return WeightStore(entries, self.path, self._mapping, self._inode)

    def read_ahead(self, left_out: Collection[str]) -> None:
        """Begins to read the file into the page cache, but for ``left_out``: in order, which is faster than by page."""
        if self.path and hasattr(os, "posix_fadvise"):
            places = [self._place(packed) for name, packed in self.items() if name not in left_out]
            Thread(target=_read_ahead, args=(self.path, places), name="read-ahead", daemon=True).start()

    def expect_rows(self, names: Collection[str]) -> None:
        """Tells the system that ``names`` are read a row at a time: a row costs a page of the disk, and no read ahead.

        Does nothing for weights that were packed in memory.
        """
        if not self._mapping:
            return
        for name in names:
            begin, count = self._place(self[name])
            start = begin // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(AttributeError, OSError):  # another system, or a kernel without huge pages
                self._mapping.madvise(mmap.MADV_NOHUGEPAGE, start, begin + count - start)
            with contextlib.suppress(AttributeError, OSError):
                self._mapping.madvise(mmap.MADV_RANDOM, start, begin + count - start)

    def _place(self, packed: Packed) -> tuple[int, int]:
        """Returns the first byte of an entry in the file, and its number of bytes."""
        return packed.data.ctypes.data - np.frombuffer(self._mapping or b"", np.uint8).ctypes.data, packed.data.nbytes

    def _read(self, file: RawIOBase, packed: PackedTensor) -> PackedTensor:
        begin, count = self._place(packed)
        data = empty_aligned(count)
        file.seek(begin)
        at = 0
        while at < len(data):
            count = file.readinto(data[at:].data)
            if not count:
                raise DamagedStore("it ends early")
            at += count
        if hasattr(os, "posix_fadvise"):  # the page cache needs no second copy
            os.posix_fadvise(file.fileno(), begin, len(data), os.POSIX_FADV_DONTNEED)
        return replace(packed, data=data)

    def resident_bytes(self) -> int:
        """Returns the bytes that are in physical memory now, in pages of 4 KiB. May be called from any thread."""
        return sum(_native.resident_bytes(packed.data) for packed in self._entries.values())


def _part_of(name: str, packed: Packed) -> str:
    if isinstance(packed, PackedExperts):
        return "experts"
    return "embedding" if name in ("embed", "inputs.embed") else "dense"


def pack_model(tensors: Mapping[str, Tensor], *, num_threads: int = 1) -> WeightStore:
    """Packs ``tensors`` in memory; the result equals that of :func:`write_store` and :func:`open_store`."""
    model: dict[str, Packed] = {}
    for name, entry in layout_of(tensors).items():
        packed = PackedExperts(len(entry.records), entry.stride, entry.parts, empty_aligned(entry.num_bytes))
        for index, record in enumerate(entry.records):
            for key, tensor in record.items():
                packed.part(index, key).data[:] = pack(tensor, num_threads=num_threads).data
        model[name] = alone(packed)
    return WeightStore(model)


def write_store(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    num_threads: int = 1,
    advance: Advance = lambda count: None,
    otherwise: str = OTHER_DISK,
    code: str = "",
) -> None:
    """Packs every tensor into a new store at ``path``.

    Raises Unavailable if the file cannot be written; then no file is left. It calls ``advance`` with numbers of bytes
    written, whose sum is :func:`store_bytes`. ``otherwise`` is the remedy if the user cannot free disk space. ``code``
    is the digest of the code that made the tensors: see :func:`open_store`.
    """
    entries = layout_of(tensors)
    headers = {name: entry.header() for name, entry in entries.items()}
    # This leaves space for the checksums, which are not known yet.
    start = aligned(len(json.dumps(headers)) + 20 * len(tensors) + ALIGNMENT)
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
    """Deletes the older stores and descriptions of the same model, which are in the folder of ``store``.

    A process that has mapped one of them can use it until it ends.
    """
    for path in store.parent.iterdir():
        if path.suffix in (".fdv", ".json") and path.stem != store.stem:
            with contextlib.suppress(OSError):
                path.unlink()


def open_store(path: Path, *, proven: bool = False, code: str | None = None) -> WeightStore:
    """Opens a store and maps its weights.

    It verifies the checksums unless ``proven``, which says that the store did not change since it was written or last
    verified. With ``code``, the store must have been made by the code with this digest, so that a store of older code
    is not used. Raises DamagedStore if the store cannot be used, and FileNotFoundError if it does not exist.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        mapping = _mapped(file, about.st_size) if about.st_size else None
    data = np.frombuffer(mapping or b"", np.uint8)
    header = _read_header(path, data)
    if code is not None and header.get("code") != code:
        raise DamagedStore("it was made by other code")
    model = {}
    end = _place(header.get("start"), "start", ALIGNMENT)
    for name, entry in _object(header.get("tensors"), "tensors").items():
        packed = _records(name, entry, path, data, end)
        end += len(packed.data)
        if not proven and _checksums(packed) != entry["checksums"]:
            raise DamagedStore(f"{name} is damaged")
        model[name] = alone(packed)
    return WeightStore(model, path, mapping, about.st_ino)


def _read_ahead(path: Path, places: list[tuple[int, int]]) -> None:
    """Tells the system that the bytes at ``places`` of a file (first byte, number of bytes) will be needed."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for begin, count in places:
            for at in range(begin, begin + count, READ_AHEAD_BYTES):
                size = min(READ_AHEAD_BYTES, begin + count - at)
                os.posix_fadvise(file.fileno(), at, size, os.POSIX_FADV_WILLNEED)


def _records(name: str, header: Any, path: Path, data: Bytes, begin: int) -> PackedExperts:
    """Returns the entry ``name``, whose records begin at byte ``begin`` of the store ``path``, mapped as ``data``.

    It checks every number of ``header``.
    """
    entry, what = _object(header, name), quote(name)
    checksums, parts = entry.get("checksums"), {}
    stride = _place(entry.get("stride"), f"the stride of {what}", ALIGNMENT)
    if not isinstance(checksums, list) or not checksums or len(checksums) * stride > len(data) - begin:
        raise DamagedStore(f"{what} is not inside the file")
    if not all(type(checksum) is int and 0 <= checksum < 1 << 64 for checksum in checksums):
        raise DamagedStore(f"{what} has impossible checksums")
    for key, part in _object(entry.get("parts"), name).items():
        parts[key] = _part(f"{what} {key}".rstrip(), part, stride)
    if ("" in parts and (len(parts), len(checksums)) != (1, 1)) or not parts:
        raise DamagedStore(f"{what} is neither a tensor nor experts")
    records = data[begin : begin + len(checksums) * stride]
    return PackedExperts(len(checksums), stride, parts, records, StoredRecords(path, begin, checksums))


def _part(what: str, value: Any, stride: int) -> Part:
    match value:
        case [str(format), [_, *_] as shape, offset] if format in FORMATS and len(shape) <= 3 and _are_dims(shape):
            dims = tuple(shape)
        case _:
            raise DamagedStore(f"{what} is described by {quote(value)}")
    blocks = PADDED.get(format) or BLOCKS[format][0]
    if (len(dims) != 2 and format not in FLOATS) or (len(dims) == 1 and format != "F32") or dims[-1] % blocks:
        raise DamagedStore(f"{what} cannot be {format} {list(dims)}")
    if _place(offset, f"the offset of {what}", LINE) + packed_bytes(format, dims) > stride:
        raise DamagedStore(f"{what} ends beyond its record, of {stride} bytes")
    return Part(format, dims, offset)


PADDED = {"F8G128": 1, "F4G16": 32}
"""Formats whose last block of a row is padded -> what the number of inputs must be a multiple of."""


def _are_dims(shape: list[Any]) -> bool:
    return all(type(dim) is int and 0 < dim <= MAX_DIM for dim in shape)


def _place(value: Any, what: str, alignment: int) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63 or value % alignment:
        raise DamagedStore(f"{what} is {quote(value)}, not a multiple of {alignment}")
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedStore(f"{quote(what)} is described by {quote(value)}")
    return value


def _mapped(file: BinaryIO, size: int) -> mmap.mmap:
    """Maps the file, in huge pages if the system supports them for files (Linux 6.16 on ext4, earlier on XFS)."""
    mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError, OSError):  # another system, or a kernel without huge pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


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
    """Returns the checksum of each record, computed from the checksums of its parts in order."""
    return [
        _joined([_native.checksum(packed.part(index, key).data) for key in packed.parts])
        for index in range(packed.count)
    ]


def _joined(checksums: list[int]) -> int:
    return checksums[0] if len(checksums) == 1 else _native.checksum(np.array(checksums, np.uint64).view(np.uint8))
