"""What both container formats share: mapping a file, reading JSON, and laying out tensors with every bound checked."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from freedive.checkpoint.tensor import Tensor
from freedive.errors import NotFound, UserError

BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "MXFP4": (32, 17),
    "F8G128": (128, 132),
    "I4G64": (64, 34),
    "I4G128": (128, 66),
    "I8G128": (128, 130),
    "I4G32Z": (32, 19),
    "I4G64Z": (64, 35),
    "I4G128Z": (128, 67),
}
"""The formats of weights: name -> (elements, bytes) of one block. Those from F8G128 on are freedive's own: see
block_formats.py."""

PART_FORMATS = {
    "F8_E4M3": (1, 1),
    "F8_E8M0": (1, 1),
    "I8": (1, 1),
    "U8": (1, 1),
    "I32": (1, 4),
    "I64": (1, 8),
    "F64": (1, 8),
}
"""Likewise, for what quantised safetensors weights are made of."""

JSON_LIMIT = 100_000_000
"""Bytes of the longest JSON text read: the limit that the safetensors format sets for its header."""


MAX_VALUES = 1 << 23
"""Values in a JSON text or the arrays of a GGUF header: three times what the largest vocabularies have."""

MAX_TENSORS = 1 << 18
"""Of one file: with each expert's apart and quantised, the largest models have fewer in all their files."""


class DamagedFile(UserError):
    """A model file whose content contradicts itself or its size."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is damaged or incomplete: {what}", "Fetch the file again")


class Entry(NamedTuple):
    """A tensor as a header declares it. ``begin`` is its offset in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    format: str
    begin: int


def quote(value: object) -> str:
    """``value`` from a file as one short printable line."""
    text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, mapped read-only."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist", "Check the path; a model of several files needs them all") from None
    except ValueError:  # mmap cannot map nothing
        raise DamagedFile(path, "it is empty") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "Check that it is a file you may read") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file."""
    with map_file(path) as mapped:
        return parse_json(path, mapped[: JSON_LIMIT + 1])


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """``text``, found in the file ``path``, as a JSON object without duplicate keys."""
    if len(text) > JSON_LIMIT:
        raise DamagedFile(path, f"its JSON is longer than {JSON_LIMIT} bytes")
    num_values = sum(map(text.count, (b",", b"[", b"{")))  # at most; what holds them takes far more than their text
    if num_values > MAX_VALUES:
        raise DamagedFile(path, f"its JSON holds more than {MAX_VALUES} values")
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"its JSON cannot be parsed ({quote(str(error))})") from None
    if not isinstance(value, dict):
        raise DamagedFile(path, "its JSON is not an object")
    return value


def lay_out(path: Path, mapped: mmap.mmap, entries: Collection[Entry]) -> dict[str, Tensor]:
    """The tensors of one file as views of its mapped bytes: inside the file, apart from each other, named once."""
    everything = np.frombuffer(mapped, np.uint8)
    tensors: dict[str, Tensor] = {}
    previous_end = 0
    if len(entries) > MAX_TENSORS:
        raise DamagedFile(path, f"it claims {len(entries)} tensors, more than {MAX_TENSORS}")
    for entry in sorted(entries, key=lambda entry: entry.begin):
        if entry.name in tensors:
            raise DamagedFile(path, f"tensor {quote(entry.name)} occurs twice")
        num_rows, row_bytes = _rows(path, entry)
        end = entry.begin + num_rows * row_bytes
        if entry.begin < previous_end:
            raise DamagedFile(path, f"tensor {quote(entry.name)} overlaps another one")
        if end > len(everything):
            raise DamagedFile(path, f"tensor {quote(entry.name)} ends at byte {end} of {len(everything)}")
        data = everything[entry.begin : end].reshape(num_rows, row_bytes)
        tensors[entry.name] = Tensor(entry.name, entry.shape, entry.format, data)
        previous_end = end
    return tensors


def _rows(path: Path, entry: Entry) -> tuple[int, int]:
    """Number of rows and bytes per row; a scalar is one row of one element. A tensor may be empty."""
    block, num_bytes = BLOCKS.get(entry.format) or PART_FORMATS[entry.format]
    *outer, width = entry.shape or (1,)
    if width % block:
        raise DamagedFile(
            path, f"tensor {quote(entry.name)}: {entry.format} needs rows of a multiple of {block}, not {width}"
        )
    return math.prod(outer), width // block * num_bytes


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
