"""Random weights in every format that the kernels read, and what the machine can run them on."""

from __future__ import annotations

import platform
from typing import Any

import gguf
import numpy as np
import pytest

from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.packed import FORMATS, PackedTensor
from freedive.checkpoint.tensor import Tensor
from freedive.native import _native

HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where the half floats of a block lie, in bytes; all other bytes of a block may have any value."""

LEVELS = [
    pytest.param(
        level, marks=pytest.mark.skipif(level not in _native.isa_levels(), reason=f"this machine has no {level}")
    )
    for level in (("scalar", "neon") if platform.machine() == "aarch64" else ("scalar", "avx2", "avx512"))
]
"""Every level of this kind of processor, as test parameters; those that the machine lacks are skipped by name."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


def random_tensor(kind: str, rows: int, width: int, *, scale: float = 0.02, seed: int = 0) -> Tensor:
    """Random codes under random half-float scales (and minima) of either sign up to ``scale``; floats likewise."""
    rng = np.random.default_rng(seed)
    if kind not in HALVES:
        values = rng.uniform(-scale, scale, (rows, width)).astype(np.float32)
        return Tensor(
            "w", (rows, width), kind, gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8)
        )
    block, num_bytes = BLOCKS[kind]
    data = rng.integers(0, 256, (rows, width // block, num_bytes), np.uint8)
    for at in HALVES[kind]:
        halves = rng.uniform(-scale, scale, (*data.shape[:2], 1)).astype(np.float16)
        data[..., at : at + 2] = halves.view(np.uint8)
    return Tensor("w", (rows, width), kind, data.reshape(rows, -1))


def quantize(name: str, values: Floats, kind: str) -> Tensor:
    """``values`` in another format, by the gguf library (which writes no K-quants)."""
    return Tensor(
        name, values.shape, kind, gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    )


def unpack(tensor: PackedTensor) -> Floats:
    """A packed matrix as float32 [out, in]."""
    rows, k = tensor.shape
    out = np.empty((rows, k), np.float32)
    for row in range(rows):
        _native.unpack_row(FORMATS[tensor.format], rows, k, tensor.data, row, out[row])
    return out
