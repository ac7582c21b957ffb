"""Code for both container formats: block sizes, and views of the tensors of a file after every bound was checked."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from freedive.checkpoint.tensor import Tensor
from freedive.files import DamagedFile, quote

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
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "NVFP4": (64, 36),
    "IQ1S": (256, 82),
    "IQ1M": (256, 114),
    "IQ2": (256, 114),
    "IQ3XXS": (256, 146),
    "IQ3S": (256, 146),
    "F4G16": (256, 148),
    "F8G128": (128, 132),
    "I4G64": (64, 34),
    "I4G128": (128, 66),
    "I8G128": (128, 130),
    "I4G32Z": (32, 19),
    "I4G64Z": (64, 35),
    "I4G128Z": (128, 67),
}
"""Formats of weights: name -> (elements, bytes) of one block.

The formats from IQ1S on are freedive's own: see repack.py for IQ1S to IQ3S, block_formats.py for the others."""

PART_FORMATS = {
    "F8_E4M3": (1, 1),
    "F8_E8M0": (1, 1),
    "I8": (1, 1),
    "U8": (1, 1),
    "I32": (1, 4),
    "I64": (1, 8),
    "F64": (1, 8),
}
"""Formats of the tensors that make up a quantised safetensors weight: name -> (elements, bytes)."""

MAX_TENSORS = 1 << 18
"""Maximum number of tensors of a file, more than the largest models with quantised experts have in all their files."""


class Entry(NamedTuple):
    """The declaration of a tensor in a header; ``begin`` is its offset in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    format: str
    begin: int


def lay_out(path: Path, mapped: mmap.mmap, entries: Collection[Entry]) -> dict[str, Tensor]:
    """Returns the tensors of one file as views of its mapped bytes.

    Raises DamagedFile if a tensor exceeds the file, overlaps another one or occurs twice.
    """
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
    """Returns the number of rows and the bytes per row; a scalar is one row of one element. A tensor may be empty."""
    block, num_bytes = BLOCKS.get(entry.format) or PART_FORMATS[entry.format]
    *outer, width = entry.shape or (1,)
    if width % block:
        raise DamagedFile(
            path, f"tensor {quote(entry.name)}: {entry.format} needs rows of a multiple of {block}, not {width}"
        )
    return math.prod(outer), width // block * num_bytes
