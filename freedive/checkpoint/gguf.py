"""Reads GGUF files, versions 2 and 3. Files are mapped; every length and offset is checked before it is used.

The layout is specified in docs/gguf.md of ggml. The `gguf` library reads the same files, but it does not check their
numbers and needs seconds for the strings of a large vocabulary. The tests compare with its tables.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from freedive.checkpoint.file import MAX_TENSORS, Entry, lay_out
from freedive.checkpoint.fingerprint import split_files
from freedive.checkpoint.quantized.nvfp4 import join_gguf_scales
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.files import MAX_VALUES, DamagedFile, map_file, quote

FORMAT_IDS = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""ggml tensor type -> format name."""

METADATA_LIMIT = 1 << 27
"""Maximum size of a header in bytes; a vocabulary of 260,000 tokens needs a tenth of it."""

_MAX_DIMS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file, or all parts of a split file if ``path`` is one of them (``name-00001-of-00003.gguf``)."""
    checkpoint = _open_parts(path)
    return replace(checkpoint, tensors=join_gguf_scales(checkpoint.tensors))


def _open_parts(path: Path) -> Checkpoint:
    paths = split_files(path)
    if paths != [path]:
        return _join([_open_part(part) for part in paths], path)
    whole = _open_part(path)
    if whole.config.get("split.count", 1) != 1:
        raise UserError(
            f"{path} is one part of a split model", "Rename the parts to their original names, -00001-of-0000N.gguf"
        )
    return whole


def _join(opened: list[Checkpoint], path: Path) -> Checkpoint:
    if not opened:
        raise UserError(f"{path} has a name that declares 0 parts", "Give the file its original name")
    tensors = {name: tensor for part in opened for name, tensor in part.tensors.items()}
    for index, part in enumerate(opened):
        if part.config.get("split.no") != index or part.config.get("split.count") != len(opened):
            raise DamagedFile(path, f"the metadata of part {index + 1} of {len(opened)} names another part")
    if len(tensors) != sum(len(part.tensors) for part in opened):
        raise DamagedFile(path, "a tensor occurs in two parts")
    if len(tensors) != opened[0].config.get("split.tensors.count", len(tensors)):
        raise DamagedFile(path, "its parts do not contain all tensors")
    return Checkpoint("gguf", opened[0].config, tensors)


def _open_part(path: Path) -> Checkpoint:
    mapped = map_file(path)
    reader = _Reader(path, memoryview(mapped)[:METADATA_LIMIT])
    num_tensors, num_keys = reader.preamble()
    if num_tensors > MAX_TENSORS:
        raise DamagedFile(path, f"it claims {num_tensors} tensors, more than {MAX_TENSORS}")
    config = reader.metadata(num_keys)
    entries = [reader.tensor() for _ in range(num_tensors)]
    alignment = config.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise DamagedFile(path, f"general.alignment is {quote(alignment)}, not a power of two")
    start = -(-reader.position // alignment) * alignment
    return Checkpoint("gguf", config, lay_out(path, mapped, [e._replace(begin=start + e.begin) for e in entries]))


class _Reader:
    """Reads a header from front to back; a wrong count ends at the end of the buffer with DamagedFile."""

    def __init__(self, path: Path, buffer: memoryview) -> None:
        self.path = path
        self.position = 0
        self._buffer = buffer
        self._num_values = 0

    def preamble(self) -> tuple[int, int]:
        """Reads the preamble and returns the numbers of tensors and of metadata keys.

        Raises UserError for another kind of file or an unknown version.
        """
        if self._buffer[:4].tobytes() != b"GGUF":
            raise UserError(f"{self.path} is neither a GGUF nor a safetensors file", "Name a model's file or folder")
        self.position = 4
        (version,) = self._unpack("<I")
        if version not in (2, 3):
            kind = "big-endian" if version and version % 65536 == 0 else f"version {version}"
            raise UserError(f"{self.path} is {kind} GGUF", "Convert it to version 3, little-endian")
        num_tensors, num_keys = self._unpack("<QQ")
        return num_tensors, num_keys

    def metadata(self, num_keys: int) -> dict[str, Any]:
        """Reads all keys and values, as plain Python values."""
        config: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in config:
                raise DamagedFile(self.path, f"metadata key {quote(key)} occurs twice")
            (kind,) = self._unpack("<I")
            config[key] = self._array(key) if kind == _ARRAY else self._value(key, kind)
        return config

    def tensor(self) -> Entry:
        """Reads the declaration of the next tensor; its ``begin`` is relative to the start of the data."""
        name = self._string()
        (num_dims,) = self._unpack("<I")
        if not 1 <= num_dims <= _MAX_DIMS:
            raise DamagedFile(self.path, f"tensor {quote(name)} has {num_dims} dimensions")
        *dims, kind, begin = self._unpack(f"<{num_dims}QIQ")
        if 0 in dims:
            raise DamagedFile(self.path, f"tensor {quote(name)} has the shape {dims[::-1]}")
        if kind not in FORMAT_IDS:
            raise UserError(
                f"{self.path}: tensor {quote(name)} has the type {_type_name(kind)}, which freedive does not read",
                f"Choose a file with {', '.join(FORMAT_IDS.values())}",
            )
        return Entry(name, tuple(reversed(dims)), FORMAT_IDS[kind], begin)

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        try:
            values = struct.unpack_from(layout, self._buffer, self.position)
        except struct.error:
            raise self._short() from None
        self.position += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """Reads ``count`` strings; this loop takes most of the time of opening a file, so it uses local variables."""
        buffer, position, length_at = self._buffer, self.position, _LENGTH.unpack_from
        strings = []
        try:
            for _ in range(count):
                begin = position + 8
                position = begin + length_at(buffer, position)[0]
                strings.append(str(buffer[begin:position], "utf-8"))
        except (struct.error, OverflowError):
            raise self._short() from None
        except UnicodeDecodeError:
            raise DamagedFile(self.path, f"the string at byte {begin} is not UTF-8") from None
        if position > len(buffer):
            raise self._short()
        self.position = position
        return strings

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise DamagedFile(self.path, f"metadata key {quote(key)} has the unknown type {kind}")
        return self._unpack("<" + _SCALARS[kind])[0]

    def _array(self, key: str) -> list[Any]:
        kind, count = self._unpack("<IQ")
        self._num_values += count
        if self._num_values > MAX_VALUES:
            raise DamagedFile(self.path, f"its arrays claim more than {MAX_VALUES} values")
        if kind == _STRING:
            return self._strings(count)
        if kind not in _SCALARS:
            raise DamagedFile(self.path, f"metadata key {quote(key)} is an array of the unknown type {kind}")
        return list(self._unpack(f"<{count}{_SCALARS[kind]}"))

    def _short(self) -> UserError:
        return DamagedFile(self.path, f"its header does not end within {len(self._buffer)} bytes")


def _type_name(kind: int) -> str:
    from gguf import GGMLQuantizationType  # imported here because only this refusal needs it

    names = {member.value: member.name for member in GGMLQuantizationType}
    return names.get(kind, str(kind))
