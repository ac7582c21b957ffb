"""Converts any format to float32; formats of GGUF with the `gguf` library. Simple and not fast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from freedive.checkpoint.block_formats import INTEGERS, decode_f8, decode_integers
from freedive.checkpoint.tensor import Tensor

FLOATS = ("F32", "F16", "BF16")


def dequantize(tensor: Tensor) -> npt.NDArray[np.float32]:
    """``tensor`` as float32 of its logical shape; F32 stays a read-only view of the file."""
    if tensor.format == "F8G128":
        return decode_f8(tensor.data, tensor.shape[-1]).reshape(tensor.shape)
    if tensor.format in INTEGERS:
        return decode_integers(tensor.format, tensor.data).reshape(tensor.shape)
    from gguf import GGMLQuantizationType, quants  # only now: a warm start dequantises nothing

    values: npt.NDArray[np.float32] = quants.dequantize(tensor.data, GGMLQuantizationType[tensor.format])
    return values.reshape(tensor.shape)


def as_floats(tensor: Tensor) -> Tensor:
    """``tensor`` itself if it is F32, F16 or BF16, else dequantised to F16."""
    if tensor.format in FLOATS:
        return tensor
    with np.errstate(over="ignore"):  # what half floats cannot hold becomes infinite, and is refused when packed
        halves = dequantize(tensor).astype(np.float16)
    return replace(tensor, format="F16", source=halves.reshape(-1, tensor.shape[-1]).view(np.uint8))
