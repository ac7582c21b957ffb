"""Quantises weights to freedive's own formats, for ``freedive quantize``.

The scale and the codes of a group are those with the least squared error among a few candidates. The codes use the
full range, -8 and -128 included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np

from freedive.arrays import Bytes, Floats
from freedive.checkpoint.block_formats import INTEGERS, encode_integers
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.tensor import Tensor
from freedive.model.params import Param

Target = Literal["i4g64", "i4g128", "i8", "bf16"]

FORMATS: dict[Target, tuple[str, ...]] = {
    "i4g64": ("I4G64", "Q4_0", "BF16"),
    "i4g128": ("I4G128", "I4G64", "Q4_0", "BF16"),
    "i8": ("I8G128", "Q8_0", "BF16"),
    "bf16": ("BF16",),
}
"""Target -> candidate formats; a matrix gets the first format whose block size divides its width."""

_CHUNK = 1 << 16
"""Number of values that a thread quantises at once, so that they and the results fit into its cache."""

_REACHES = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8)
"""Candidate values of the extreme code, as fractions of the largest magnitude of the group."""


def quantize(
    tensors: Mapping[str, Tensor], params: Mapping[str, Param], target: Target, *, num_threads: int = 1
) -> dict[str, Tensor]:
    """Returns the canonical ``tensors`` with their matrices in ``target``; rows are computed when they are read.

    Embedding and output head have at least eight bits, because the answers depend most on them. Routers and vectors are
    not changed.
    """
    formats = {name: target_format(name, param, tensors[name].format, target) for name, param in params.items()}
    return {name: _converted(tensors[name], format, num_threads) for name, format in formats.items()}


def target_format(name: str, param: Param, stored: str, target: Target) -> str:
    """Returns the new format of the weight with the canonical ``name``, whose present format is ``stored``."""
    if param.role == "embedding" or name == "head":
        target = "bf16" if target == "bf16" else "i8"
    elif param.role == "heads" and target == "bf16":
        return "BF16"
    elif param.role != "linear":
        return stored
    return next(format for format in FORMATS[target] if param.shape[-1] % BLOCKS[format][0] == 0)


def _converted(tensor: Tensor, format: str, num_threads: int) -> Tensor:
    if format == tensor.format:
        return tensor
    width = tensor.shape[-1]
    block, num_bytes = BLOCKS[format]
    step = max(1, _CHUNK // width)

    def make(begin: int, end: int) -> Bytes:
        data = tensor.rows(begin, end)
        out = np.empty((len(data), width // block * num_bytes), np.uint8)

        def convert(at: int) -> None:
            some = data[at : at + step]
            values = dequantize(replace(tensor, shape=(len(some), width), source=some))
            out[at : at + step] = _encoded(values, format)

        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(convert, range(0, len(data), step)))
        return out

    return replace(tensor, format=format, source=make)


def _encoded(values: Floats, format: str) -> Bytes:
    if format == "BF16":
        return to_bf16(values)
    bits, group, _ = INTEGERS[format]
    half = 1 << bits - 1
    groups = values.reshape(len(values), -1, group)
    with np.errstate(invalid="ignore", over="ignore"):  # packing refuses values that are not finite
        scales = _scales(groups, half, _REACHES if bits == 4 else (1.0,))
        codes = (_codes(groups, scales, half) + half).astype(np.uint8)
    return encode_integers(format, codes.reshape(values.shape), scales, np.empty(0))


def _scales(groups: Floats, half: int, reaches: Iterable[float]) -> Floats:
    """Returns the best scale of each group of [..., group].

    The candidates map the value farthest from zero to the code -half or half - 1, or clamp it there. For given codes q
    the best scale is sum(x q) / sum(q q), which reduces the squared error by sum(x q)^2 / sum(q q).
    """
    top = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)[..., 0]
    best, scales = np.full(top.shape, -1, np.float32), np.zeros_like(top)
    for extreme in (-half, half - 1):
        for reach in reaches:
            codes = _codes(groups, top * np.float32(reach / extreme), half)
            explained, size = (groups * codes).sum(-1), (codes * codes).sum(-1)
            size[size == 0] = 1
            better = explained * explained / size > best
            best = np.where(better, explained * explained / size, best)
            scales = np.where(better, explained / size, scales)
    halves: Floats = scales.astype(np.float16).astype(np.float32)  # the stored value, for which the codes are chosen
    return np.where(np.isfinite(top), halves, np.float32(np.nan))


def _codes(groups: Floats, scales: Floats, half: int) -> Floats:
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes: Floats = np.clip(np.rint(groups * inverse[..., None]), -half, half - 1)
    return codes


def to_bf16(values: Floats) -> Bytes:
    """Rounds ``values`` to bfloat16 (nearest, ties to even) and returns them as rows of bytes."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isfinite(values), rounded, bits >> 16 | 0x40).astype(np.uint16).view(np.uint8)
