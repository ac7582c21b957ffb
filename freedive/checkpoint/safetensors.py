"""Reads and writes safetensors files: an 8-byte length, a JSON header, then the bytes of the tensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from freedive.arrays import Bytes
from freedive.checkpoint.file import PART_FORMATS, Entry, lay_out
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.write import new_file
from freedive.errors import NotFound, UserError
from freedive.files import JSON_LIMIT, DamagedFile, map_file, parse_json, quote, read_json

DTYPES = {name: num_bytes for name, (_, num_bytes) in PART_FORMATS.items()} | {"F32": 4, "F16": 2, "BF16": 2}
"""dtype that freedive reads -> bytes of one value; dtypes are also format names."""

_MAX_DIMS = 8
_SHARD = re.compile(r"[\w.-][\w. -]*(/[\w.-][\w. -]*)*\.safetensors", re.ASCII)


def read_file(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of one file as views of the mapped file. Raises UserError if it is damaged."""
    mapped = map_file(path)
    if len(mapped) < 8:
        raise DamagedFile(path, "it ends inside its header")
    start = 8 + int.from_bytes(mapped[:8], "little")
    if start > min(len(mapped), JSON_LIMIT):
        raise DamagedFile(path, f"its header claims {start - 8} bytes, the file has {len(mapped)}")
    header = parse_json(path, mapped[8:start])
    header.pop("__metadata__", None)
    entries = [_entry(path, start, name, value) for name, value in header.items()]
    laid_out = lay_out(path, mapped, entries)
    return {
        name: _narrowed(tensor) for name, tensor in laid_out.items() if 0 not in tensor.shape
    }  # drops empty tensors


def read_shards(name: str, paths: Sequence[Path]) -> dict[str, Tensor]:
    """Reads the tensors of a model without an index; ``paths`` are its parts, ``name`` that of the first part."""
    num_parts = int(name.rpartition("-of-")[2].partition(".")[0])
    present = {path.name for path in paths}
    for number in range(1, num_parts + 1):
        part = name.replace("-00001-of-", f"-{number:05}-of-")
        if part not in present:
            raise NotFound(f"{paths[0].with_name(part)} does not exist", "Fetch it too: a model needs all its files")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        found = read_file(path)
        if twice := found.keys() & tensors.keys():
            raise DamagedFile(path, f"tensor {quote(min(twice))} is in another part, too")
        tensors |= found
    return tensors


def read_sharded(index: Path) -> dict[str, Tensor]:
    """Reads the tensors that ``index`` (model.safetensors.index.json) lists, except those that a file lacks.

    A missing tensor may belong to a part that is not run; :mod:`freedive.checkpoint.rules` refuses the model otherwise.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFile(index, "it has no weight_map")
    paths = {name: _beside(index, shard) for name, shard in weight_map.items()}
    shards = {path: read_file(path) for path in sorted(set(paths.values()))}
    return {name: shards[path][name] for name, path in paths.items() if name in shards[path]}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], otherwise: str) -> None:
    """Writes ``tensors`` in order; only one tensor is in memory at a time.

    Raises Unavailable if the file cannot be written; ``otherwise`` is the remedy if the user cannot free disk space.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + math.prod(tensor.shape) * DTYPES[tensor.format]
        header[name] = {"dtype": tensor.format, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with new_file(path, "The model", end, otherwise) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.data).data)


def _beside(index: Path, shard: object) -> Path:
    """Returns the path of ``shard``, which must be in the folder of ``index`` or below. Raises DamagedFile if not."""
    if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or ".." in shard.split("/"):
        raise DamagedFile(index, f"it names {quote(shard)}, which is no .safetensors file in its folder")
    return index.parent / shard


def _narrowed(tensor: Tensor) -> Tensor:
    """Converts an F64 tensor to F32; returns other tensors unchanged."""
    if tensor.format != "F64":
        return tensor

    def rows(begin: int, end: int) -> Bytes:
        return tensor.rows(begin, end).view(np.float64).astype(np.float32).view(np.uint8)

    return replace(tensor, format="F32", source=rows)


def _entry(path: Path, start: int, name: str, value: Any) -> Entry:
    """Reads the header entry of one tensor and checks its byte range against its dtype and shape."""
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if len(shape) <= _MAX_DIMS:
            numbers = [*shape, begin, end]
        case _:
            numbers = [None]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise DamagedFile(path, f"tensor {quote(name)} is described by {quote(value)}")
    if dtype not in DTYPES:
        raise UserError(
            f"{path}: tensor {quote(name)} has the type {quote(dtype)}, which freedive does not read",
            f"Choose a model with {', '.join(DTYPES)}, or a GGUF file",
        )
    if end - begin != math.prod(shape) * DTYPES[dtype]:
        raise DamagedFile(path, f"tensor {quote(name)} does not fill its bytes {begin} to {end}")
    return Entry(name, tuple(shape), dtype, start + begin)
