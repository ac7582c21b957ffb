"""Converts every format to float32, simply and slowly; GGUF formats are converted by the `gguf` library."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from freedive.checkpoint.block_formats import INTEGERS, decode_f4, decode_f8, decode_integers
from freedive.checkpoint.tensor import Tensor

FLOATS = ("F32", "F16", "BF16")


def dequantize(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Returns ``tensor`` as float32 in its logical shape; an F32 tensor stays a read-only view of the file."""
    if tensor.format == "F8G128":
        return decode_f8(tensor.data, tensor.shape[-1]).reshape(tensor.shape)
    if tensor.format == "F4G16":
        return decode_f4(tensor.data, tensor.shape[-1]).reshape(tensor.shape)
    if tensor.format in INTEGERS:
        return decode_integers(tensor.format, tensor.data).reshape(tensor.shape)
    from gguf import GGMLQuantizationType, quants  # imported here because a warm start dequantises nothing

    values: npt.NDArray[np.float32] = quants.dequantize(tensor.data, GGMLQuantizationType[tensor.format])
    return values.reshape(tensor.shape)


def as_floats(tensor: Tensor) -> Tensor:
    """Returns ``tensor`` itself if it is F32, F16 or BF16, else dequantised to F16."""
    if tensor.format in FLOATS:
        return tensor
    with np.errstate(over="ignore"):  # values beyond the range of float16 become infinite; packing refuses them
        halves = dequantize(tensor).astype(np.float16)
    return replace(tensor, format="F16", source=halves.reshape(-1, tensor.shape[-1]).view(np.uint8))
