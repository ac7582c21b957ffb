"""Converts GGUF formats whose blocks the kernels do not read to freedive's own, without loss, before they are packed.

The IQ formats below four bits store indices into grids: tables of four or eight magnitudes each. Few magnitudes occur,
so a weight becomes a code of 2 to 4 bits, which kernels look up in 16 bytes; they never read the grids. A block of 256
weights is

    float16 super-scale | two bytes per 32 weights | low bits of all codes | high bits of all codes

The two bytes are the signed scales of both half groups, or in IQ1S the scale and the minimum of the group. Codes are in
order, the first in the lowest bits; native/formats/format.h has their values.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from freedive.arrays import Bytes
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.tensor import Tensor

Array = npt.NDArray[Any]

_CHUNK = 1 << 11
"""Number of blocks that a thread converts at once, so that their arrays fit into its cache."""


class Repacking(NamedTuple):
    """The ``format`` that a GGUF format becomes, and the function that converts blocks [n, bytes] to blocks of it."""

    format: str
    convert: Callable[[Bytes], Bytes]


def packed_format(format: str) -> str:
    """Returns the format in which the kernels read a matrix of ``format``."""
    return REPACKINGS[format].format if format in REPACKINGS else format


def repacked(tensor: Tensor, *, num_threads: int = 1) -> Tensor:
    """Returns ``tensor`` in the format that the kernels read; its rows are converted when they are read."""
    if tensor.format not in REPACKINGS:
        return tensor
    format, convert = REPACKINGS[tensor.format]

    def rows(begin: int, end: int) -> Bytes:
        data = tensor.rows(begin, end)
        blocks = np.ascontiguousarray(data).reshape(-1, BLOCKS[tensor.format][1])
        with ThreadPoolExecutor(num_threads) as pool:
            parts = list(pool.map(convert, (blocks[at : at + _CHUNK] for at in range(0, len(blocks), _CHUNK))))
        return np.concatenate(parts).reshape(end - begin, -1)

    return replace(tensor, format=format, source=rows)


# --- parts of blocks ----------------------------------------------------------------------------------------------


def _split(blocks: Bytes, *sizes: int) -> list[Bytes]:
    """Splits blocks [n, bytes] into contiguous parts of ``sizes`` bytes and the rest."""
    return [np.ascontiguousarray(part) for part in np.split(blocks, np.cumsum(sizes), axis=1)]


def _fields(values: Array, shifts: list[int], mask: int) -> Array:
    """Returns the bit fields at ``shifts`` of every value of [n, m], as [n, m * len(shifts)]."""
    kind = values.dtype.type
    fields: Array = (values[..., None] >> np.array(shifts, kind) & kind(mask)).reshape(len(values), -1)
    return fields


def _odd(scales: Array) -> Bytes:
    """Returns 2 s + 1 for every 3- or 4-bit scale s."""
    odd: Bytes = (2 * scales + 1).astype(np.uint8)
    return odd


def _signs(indices: Array) -> Bytes:
    """Returns 8 sign bits for each index of 7 bits: the eighth makes their number even."""
    parity = indices ^ indices >> 4
    parity ^= parity >> 2
    signs: Bytes = (indices | (parity ^ parity >> 1) << 7 & 128).astype(np.uint8)
    return signs


@cache
def _grid(format: str) -> Array:
    """Returns the grid of the `gguf` library: 16 bits an entry, in which each of its 8 or 4 magnitudes is a rank."""
    from gguf import quants  # imported here because a warm start repacks nothing

    kind = getattr(quants, format)
    kind.init_grid()
    ranks = np.searchsorted(np.array(kind.grid_map), kind.grid.reshape(kind.grid_shape)).astype(np.uint16)
    words: Array = np.bitwise_or.reduce(ranks << np.arange(0, 16, 16 // ranks.shape[1], dtype=np.uint16), axis=1)
    return words


@cache
def _spread_signs() -> Array:
    """Returns for each byte of signs a word with every sign at the highest bit of a 4-bit code."""
    bits = np.arange(256, dtype=np.uint32)[:, None] >> np.arange(8, dtype=np.uint32) & 1
    words: Array = np.bitwise_or.reduce(bits << np.arange(3, 32, 4, dtype=np.uint32), axis=1)
    return words


def _join(scale: Bytes, scales: Bytes, *codes: Array) -> Bytes:
    return np.concatenate([scale, scales, *(part.view(np.uint8) for part in codes)], axis=1)


# --- formats ------------------------------------------------------------------------------------------------------


def _iq2_xxs(blocks: Bytes) -> Bytes:
    scale, rest = _split(blocks, 2)
    indices, words = np.moveaxis(rest.view(np.uint32).reshape(len(blocks), 8, 2), 2, 0)
    grid = _grid("IQ2_XXS")[np.ascontiguousarray(indices).view(np.uint8)]
    signs = _signs(_fields(words, [0, 7, 14, 21], 127))
    return _join(scale, _odd(words >> 28).repeat(2, 1), grid, signs)


def _iq2_xs(blocks: Bytes) -> Bytes:
    scale, rest, scales = _split(blocks, 2, 64)
    indices = rest.view(np.uint16)
    return _join(scale, _odd(_fields(scales, [0, 4], 15)), _grid("IQ2_XS")[indices & 511], _signs(indices >> 9))


def _iq2_s(blocks: Bytes) -> Bytes:
    scale, low, signs, high, scales = _split(blocks, 2, 32, 32, 8)
    indices = low | _fields(high, [0, 2, 4, 6], 3).astype(np.uint16) << 8
    return _join(scale, _odd(_fields(scales, [0, 4], 15)), _grid("IQ2_S")[indices], signs)


def _iq3_xxs(blocks: Bytes) -> Bytes:
    scale, indices, rest = _split(blocks, 2, 64)
    words = rest.view(np.uint32)
    signs = _signs(_fields(words, [0, 7, 14, 21], 127))
    codes = _grid("IQ3_XXS")[indices].view(np.uint32) | _spread_signs()[signs]
    return _join(scale, _odd(words >> 28).repeat(2, 1), codes)


def _iq3_s(blocks: Bytes) -> Bytes:
    scale, low, high, signs, scales = _split(blocks, 2, 64, 8, 32)
    indices = low | _fields(high, [*range(8)], 1).astype(np.uint16) << 8
    codes = _grid("IQ3_S")[indices].view(np.uint32) | _spread_signs()[signs]
    return _join(scale, _odd(_fields(scales, [0, 4], 15)).repeat(2, 1), codes)


def _iq1_s(blocks: Bytes) -> Bytes:
    """The weights scale * (t - 1 + 1/8) or scale * (t - 1 - 1/8), t being 0, 1 or 2, are a scale and a minimum."""
    scale, low, rest = _split(blocks, 2, 32)
    high = rest.view(np.uint16)
    indices = low | _fields(high, [0, 3, 6, 9], 7) << 8
    odd = _odd(high >> 12 & 7)
    minima = odd * np.where(high >> 15, np.uint8(9), np.uint8(7))
    return _join(scale, np.stack([8 * odd, minima], 2).reshape(-1, 16), _grid("IQ1_S")[indices])


def _iq1_m(blocks: Bytes) -> Bytes:
    """The high bit of a code is the sign of the eighth that 8 weights have in common."""
    low, high, rest = _split(blocks, 32, 16)
    words = rest.view(np.uint16)
    scale = np.bitwise_or.reduce(words >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1, keepdims=True)
    indices = low | _fields(high, [0, 4], 7).astype(np.uint16) << 8
    eighths = -_fields(high, [3, 7], 1)
    return _join(scale.view(np.uint8), _odd(_fields(words, [0, 3, 6, 9], 7)), _grid("IQ1_M")[indices], eighths)


def _tq1_0(blocks: Bytes) -> Bytes:
    """A byte is a fraction of 256 that has up to five ternary digits: multiplied by 3, it carries the first."""
    bytes_of_5, bytes_of_4, scale = _split(blocks, 48, 4)
    digits = [_digits(part, 5) for part in (bytes_of_5[:, :32], bytes_of_5[:, 32:])]
    codes = np.concatenate([*digits, _digits(bytes_of_4, 4)], axis=1).reshape(-1, 2, 4, 32)
    packed = np.bitwise_or.reduce(codes << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)
    return np.concatenate([packed.reshape(-1, 64), scale], axis=1)


def _digits(fractions: Bytes, count: int) -> Bytes:
    """Returns ``count`` ternary digits of each of [n, m] bytes: [n, count * m], the first digits first."""
    shifted = fractions[:, None] * np.array([3**i for i in range(count)], np.uint8)[:, None]
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(fractions), -1)


REPACKINGS = {
    "IQ1_S": Repacking("IQ1S", _iq1_s),
    "IQ1_M": Repacking("IQ1M", _iq1_m),
    "IQ2_XXS": Repacking("IQ2", _iq2_xxs),
    "IQ2_XS": Repacking("IQ2", _iq2_xs),
    "IQ2_S": Repacking("IQ2", _iq2_s),
    "IQ3_XXS": Repacking("IQ3XXS", _iq3_xxs),
    "IQ3_S": Repacking("IQ3S", _iq3_s),
    "TQ1_0": Repacking("TQ2_0", _tq1_0),
}
"""GGUF format -> the format of the kernels."""
