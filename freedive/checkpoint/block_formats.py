"""freedive's own block formats, for weights that safetensors files store in several tensors. A row consists of blocks.

    integers    float16 scale | zero point, one byte (formats ending in Z) | codes; a weight is scale * (code - zero)
    F8G128      float32 scale | 128 codes, e4m3; the last block of a row is padded with zeros
    F4G16       float32 factor | 16 scales, e4m3, of 16 codes each | 256 codes, e2m1; padded likewise

An 8-bit code is stored minus 128, as a signed byte. With 4 bits, 16 bytes store 32 codes, the first 16 of them in the
low nibbles; in F4G16, a byte stores two codes that follow each other. GGUF's Q4_0 and Q8_0 have the same layout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from freedive.arrays import Bytes, Floats
from freedive.checkpoint.file import BLOCKS


class Integers(NamedTuple):
    """An integer format: bits per code, inputs per group (which share a scale), and whether groups have zero points."""

    bits: int
    group: int
    has_zero: bool


INTEGERS = {
    "I4G128": Integers(4, 128, False),
    "I4G64": Integers(4, 64, False),
    "Q4_0": Integers(4, 32, False),
    "I4G128Z": Integers(4, 128, True),
    "I4G64Z": Integers(4, 64, True),
    "I4G32Z": Integers(4, 32, True),
    "I8G128": Integers(8, 128, False),
    "Q8_0": Integers(8, 32, False),
}
"""The integer formats; among those with equal bits and zero points, the widest group comes first."""

F8_BLOCK = 128


def integer_format(bits: int, group: int, has_zero: bool) -> str | None:
    """Returns the format with the widest groups that stores groups of ``group`` inputs without loss, or None."""
    for name, kind in INTEGERS.items():
        if (kind.bits, kind.has_zero) == (bits, has_zero) and group % kind.group == 0:
            return name
    return None


def encode_integers(format: str, codes: Bytes, scales: Floats, zeros: npt.NDArray[Any]) -> Bytes:
    """Encodes unsigned ``codes`` [rows, width], ``scales`` and ``zeros`` [rows, groups] as blocks [rows, bytes].

    Groups may be wider than those of the format. In a format without zero points, the zero point is half the range of
    codes. Scales become float16: without loss if they are float16, or bfloat16 of at least 2^-17; too large scales
    become infinite.
    """
    bits, group, has_zero = INTEGERS[format]
    rows, width = codes.shape
    repeats = width // group // scales.shape[1]
    blocks = np.empty((rows, width // group, BLOCKS[format][1]), np.uint8)
    with np.errstate(over="ignore"):
        halves = np.repeat(scales, repeats, 1).astype(np.float16)
    blocks[..., :2] = halves.view(np.uint8).reshape(rows, -1, 2)
    if has_zero:
        blocks[..., 2] = np.repeat(zeros, repeats, 1)
    if bits == 8:
        blocks[..., 2:] = (codes ^ np.uint8(128)).reshape(rows, -1, group)
    else:
        low, high = np.moveaxis(codes.reshape(rows, -1, group // 32, 2, 16), 3, 0)
        blocks[..., 2 + has_zero :] = (low | high << 4).reshape(rows, -1, group // 2)
    return blocks.reshape(rows, -1)


def decode_integers(format: str, data: Bytes) -> Floats:
    """Decodes blocks [rows, bytes] to values [rows, width]."""
    bits, group, has_zero = INTEGERS[format]
    blocks = data.reshape(len(data), -1, BLOCKS[format][1])
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    codes = blocks[..., 2 + has_zero :]
    if bits == 8:
        values = codes.view(np.int8).astype(np.float32)
    else:
        nibbles = codes.reshape(*codes.shape[:2], group // 32, 1, 16) >> np.array([[0], [4]], np.uint8) & 15
        zeros = blocks[..., 2:3].astype(np.float32) if has_zero else np.float32(8)
        values = nibbles.reshape(*codes.shape[:2], group).astype(np.float32) - zeros
    return (values * scales).reshape(len(data), -1)


def encode_f8(codes: Bytes, scales: Floats) -> Bytes:
    """Encodes e4m3 ``codes`` [rows, width] and ``scales`` [rows, ceil(width / 128)] as blocks [rows, bytes]."""
    rows, width = codes.shape
    blocks = np.zeros((*scales.shape, 4 + F8_BLOCK), np.uint8)
    blocks[..., :4] = scales[..., None].view(np.uint8)
    whole = width // F8_BLOCK
    blocks[:, :whole, 4:] = codes[:, : whole * F8_BLOCK].reshape(rows, whole, F8_BLOCK)
    blocks[:, whole:, 4 : 4 + width % F8_BLOCK] = codes[:, None, whole * F8_BLOCK :]
    return blocks.reshape(rows, -1)


def decode_f8(data: Bytes, width: int) -> Floats:
    """Decodes blocks [rows, bytes] to values [rows, width]."""
    blocks = data.reshape(len(data), -1, 4 + F8_BLOCK)
    scales = np.ascontiguousarray(blocks[..., :4]).view(np.float32)
    values: Floats = _E4M3[blocks[..., 4:]] * scales
    return values.reshape(len(data), -1)[:, :width]


F4_BLOCK, F4_GROUP = 256, 16


def encode_f4(codes: Bytes, scales: Bytes, factors: Floats) -> Bytes:
    """Encodes e2m1 ``codes`` [rows, width / 2], e4m3 ``scales`` [rows, width / 16] and ``factors`` of rows as blocks.

    A code stands for code * scale * factor.
    """
    rows, width = len(codes), 2 * codes.shape[1]
    num_blocks = -(-width // F4_BLOCK)
    blocks = np.zeros((rows, num_blocks, BLOCKS["F4G16"][1]), np.uint8)
    blocks[..., :4] = np.ascontiguousarray(factors, np.float32).view(np.uint8).reshape(rows, 1, 4)
    for begin, values in ((4, scales), (4 + F4_BLOCK // F4_GROUP, codes)):
        size = values.shape[1] * F4_BLOCK // width
        whole = width // F4_BLOCK
        blocks[:, :whole, begin : begin + size] = values[:, : whole * size].reshape(rows, whole, size)
        blocks[:, whole:, begin : begin + values.shape[1] - whole * size] = values[:, None, whole * size :]
    return blocks.reshape(rows, -1)


def decode_f4(data: Bytes, width: int) -> Floats:
    """Decodes blocks [rows, bytes] to values [rows, width]."""
    blocks = data.reshape(len(data), -1, BLOCKS["F4G16"][1])
    factors = np.ascontiguousarray(blocks[..., :4]).view(np.float32)
    begin = 4 + F4_BLOCK // F4_GROUP
    scales = _E4M3[blocks[..., 4:begin]] * factors
    codes = (blocks[..., begin:, None] >> np.array([0, 4], np.uint8) & 15).reshape(*scales.shape, F4_GROUP)
    values: Floats = _E2M1[codes] * scales[..., None]
    return values.reshape(len(data), -1)[:, :width]


def _e4m3_table() -> Floats:
    """Returns the e4m3 value of every byte: sign, 4 exponent bits with bias 7, 3 mantissa bits; 0x7f, 0xff are NaN."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(mantissa + 0.0, -9))
    size[byte & 127 == 127] = np.nan
    values: Floats = np.where(byte < 128, size, -size).astype(np.float32)
    return values


_E4M3 = _e4m3_table()
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
