"""Random weights in every format that the kernels read, and the instruction-set levels that the machine supports."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable
from typing import Any

import gguf
import numpy as np
import pytest

from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.packed import FORMATS, PackedTensor
from freedive.checkpoint.repack import packed_format
from freedive.checkpoint.tensor import Tensor
from freedive.native import _native

HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
    "IQ1_S": (0,),
    "IQ1_M": (),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "F4G16": (),
    "I4G64": (0,),
    "I4G128": (0,),
    "I8G128": (0,),
    "I4G32Z": (0,),
    "I4G64Z": (0,),
    "I4G128Z": (0,),
}
"""The formats that kernels multiply as integers, with the byte offsets of a block's half floats.

All other bytes of a block may have any value, except MXFP4's exponent and the scales of IQ1_M and F4G16.
"""

KINDS = ("F32", "F16", "BF16", "F8G128", *HALVES)
"""Every format that can be packed, of files and of freedive's own."""

KERNELS = {packed_format(kind): kind for kind in reversed(KINDS)}
"""Every format of the kernels -> the first format that becomes it."""

X86_NAMES = ("scalar", "avx2", "avx_vnni", "avx512", "amx-emulated")
NAMES = ("scalar", "neon") if platform.machine() == "aarch64" else X86_NAMES
BEST = _native.isa_levels()[-1]


def only(kept: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Test parameters: ``kept`` are part of `make test`, the other ``values`` of the full matrix (`make test-all`)."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.matrix) for value in values]


def levels(kept: Collection[str] = NAMES) -> list[Any]:
    """Every level of this kind of processor as test parameters; those that the machine lacks are skipped by name."""
    found = []
    for level in NAMES:
        lacking = pytest.mark.skipif(level not in _native.isa_levels(), reason=f"this machine has no {level}")
        found.append(pytest.param(level, marks=[lacking, *([] if level in kept else [pytest.mark.matrix])]))
    return found


LEVELS = levels()
"""For tests that prove equal bits at all levels, once for each kernel and once for each model."""
BEST_LEVEL = levels([BEST])
"""For tests that rely on equal bits: the other levels are part of the full matrix."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


def random_tensor(kind: str, rows: int, width: int, *, scale: float = 0.02, seed: int = 0) -> Tensor:
    """Returns random codes with random scales (and minima) of either sign up to ``scale``; floats likewise."""
    rng = np.random.default_rng(seed)
    if kind in ("F32", "F16", "BF16"):
        return quantize("w", rng.uniform(-scale, scale, (rows, width)).astype(np.float32), kind)
    block, num_bytes = BLOCKS[kind]
    data = rng.integers(0, 256, (rows, -(-width // block), num_bytes), np.uint8)

    def draw() -> np.ndarray[Any, Any]:
        return rng.uniform(-scale, scale, (*data.shape[:2], 1))

    for at in HALVES.get(kind, ()):
        data[..., at : at + 2] = draw().astype(np.float16).view(np.uint8)
    if kind == "IQ1_M":
        set_iq1_m_scale(data, draw())
    if kind == "F4G16":
        data[..., 4:20][data[..., 4:20] & 127 == 127] = 0  # NaN
        data[..., :4] = (draw() / 64).astype(np.float32).view(np.uint8)
    if kind == "MXFP4":
        data[..., :1] = np.log2(np.abs(draw()) + 1e-37) + 127
    if kind == "NVFP4":
        data[..., :4] &= 0x77  # neither a sign nor 127, which means 0
    if kind == "F8G128":
        data[data & 127 == 127] = 0  # NaN
        data[..., :4] = draw().astype(np.float32).view(np.uint8)
    return Tensor("w", (rows, width), kind, data.reshape(rows, -1))


def set_iq1_m_scale(data: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    """Sets the half float of IQ1_M blocks, which has its bits in the highest four of each word of scales."""
    bits = values.astype(np.float16).view(np.uint16)
    words = data[..., 48:].view(np.uint16)
    words[...] = words & 0x0FFF | bits >> np.array([0, 4, 8, 12], np.uint16) << 12


def quantize(name: str, values: Floats, kind: str) -> Tensor:
    """Converts ``values`` to another format with the gguf library (which writes no K-quants)."""
    return Tensor(
        name, values.shape, kind, gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    )


def unpack(tensor: PackedTensor) -> Floats:
    """Returns a packed matrix as float32 [out, in]."""
    rows, k = tensor.shape
    out = np.empty((rows, k), np.float32)
    for row in range(rows):
        _native.unpack_row(FORMATS[tensor.format], rows, k, tensor.data, row, out[row])
    return out
