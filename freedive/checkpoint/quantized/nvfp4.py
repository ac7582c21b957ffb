"""Reads NVFP4, of safetensors and of GGUF: e2m1 codes with an e4m3 scale for every 16, and a float for the matrix.

compressed-tensors  X_packed (U8), X_scale (F8_E4M3), X_global_scale (F32), which divides
ModelOpt            X (U8), X_scale (F8_E4M3), X_scale_2 (F32), which multiplies
GGUF                X (NVFP4), and Y.scale (F32), which multiplies, where X is Y.weight; experts have one each

In Gemma 4's files, ffn_down_exps.scale is the scale of the experts' outputs, whatever the format of the weights. That
of NVFP4 is multiplied into it by llama.cpp's converter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from freedive.arrays import Bytes, Floats
from freedive.checkpoint.block_formats import F4_GROUP, encode_f4
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.quantized.schemes import QuantizedParts, mxfp4
from freedive.checkpoint.tensor import Tensor
from freedive.errors import UserError
from freedive.files import quote

KERNEL_GROUP = 32
"""Kernels read this number of inputs at once."""


def nvfp4_or_mxfp4(parts: QuantizedParts, quantization: Mapping[str, Any]) -> Tensor:
    """Combines packed e2m1 codes, whose scales tell the two formats apart."""
    scale = parts.find("_scale")
    return (nvfp4 if scale and scale.format == "F8_E4M3" else mxfp4)(parts, quantization)


def nvfp4(parts: QuantizedParts, _: Mapping[str, Any]) -> Tensor:
    """Combines e2m1 codes, two per byte (the first in the low nibble), with e4m3 scales and the scale of the matrix.

    A scale that divides is rounded to the nearest float of its inverse, so weights may differ by 2^-23 of their size.
    """
    rows, num_bytes = parts.matrix()
    width = 2 * num_bytes
    if width % KERNEL_GROUP:
        raise parts.unfit(f"has {width} inputs instead of a multiple of {KERNEL_GROUP}")
    scales = parts.need("_scale", ("F8_E4M3",), (rows, width // F4_GROUP))
    divides = parts.codes.name.endswith("_packed")
    ending = "_global_scale" if divides else "_scale_2"
    whole = parts.find(ending)
    whole = parts.need(ending, ("F32",), (1,) if whole and whole.shape == (1,) else ())

    def make(begin: int, end: int) -> Bytes:
        factor = dequantize(whole).reshape(1)
        with np.errstate(divide="ignore", over="ignore"):  # packing refuses what is infinite
            factor = np.reciprocal(factor) if divides else factor
        return encode_f4(parts.codes.rows(begin, end), scales.rows(begin, end), factor.repeat(end - begin))

    return Tensor(parts.name, (rows, width), "F4G16", make)


def join_gguf_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a GGUF file with each NVFP4 weight and its scales as one tensor.

    Raises UserError if the scales do not match the weight.
    """
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        if tensor.format == "NVFP4":
            stem = name.removesuffix("weight")
            is_joined = not _scales_outputs(stem, tensors)
            weights[name] = _with_scale(tensor, tensors.get(stem + "scale") if is_joined else None)
            used |= {stem + "scale"} if is_joined else set()
            used.add(stem + "input_scale")
    return {name: weights.get(name, tensor) for name, tensor in tensors.items() if name not in used}


def _scales_outputs(stem: str, tensors: Mapping[str, Tensor]) -> bool:
    """Returns whether the scale of ``stem`` belongs to the outputs of Gemma 4's experts, whose router has one too."""
    layer = stem.removesuffix("ffn_down_exps.")
    return layer != stem and f"{layer}ffn_gate_inp.scale" in tensors


def _with_scale(tensor: Tensor, scale: Tensor | None) -> Tensor:
    rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    num_matrices = math.prod(tensor.shape[:-2])
    if scale and (scale.format != "F32" or math.prod(scale.shape) not in (1, num_matrices)):
        raise UserError(
            f"The tensor {quote(scale.name)} is {scale.format} {list(scale.shape)} instead of F32 [{num_matrices}]",
            "The file is incomplete or damaged: fetch the model again",
        )

    def make(begin: int, end: int) -> Bytes:
        factors: Floats = np.ones(1, np.float32) if scale is None else dequantize(scale).reshape(-1)
        matrix = np.arange(begin, end) // rows
        codes, scales = _in_order(tensor.rows(begin, end))
        return encode_f4(codes, scales, np.broadcast_to(factors, num_matrices)[matrix])

    return Tensor(tensor.name, tensor.shape, "F4G16", make)


def _in_order(data: Bytes) -> tuple[Bytes, Bytes]:
    """Returns codes [rows, width / 2] in order, two per byte, and scales [rows, width / 16] of GGUF's blocks.

    A block has four scales, whose byte 127 means 0, and for each 8 bytes; the low nibbles are the first 8 codes.
    """
    blocks = data.reshape(len(data), -1, BLOCKS["NVFP4"][1])
    scales = blocks[..., :4] & np.uint8(127)
    scales[scales == 127] = 0
    halves = blocks[..., 4:].reshape(len(data), -1, 1, 8) >> np.array([[0], [4]], np.uint8) & np.uint8(15)
    pairs = halves.reshape(len(data), -1, 2)
    return pairs[..., 0] | pairs[..., 1] << np.uint8(4), scales.reshape(len(data), -1)
