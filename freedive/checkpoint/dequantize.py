"""Any format -> float32, by the `gguf` library: obviously right, not fast."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from freedive.checkpoint.tensor import Tensor


def dequantize(tensor: Tensor) -> npt.NDArray[np.float32]:
    """``tensor`` as float32 of its logical shape; F32 stays a read-only view of the file."""
    from gguf import GGMLQuantizationType, quants  # only now: a warm start dequantises nothing

    values: npt.NDArray[np.float32] = quants.dequantize(tensor.data, GGMLQuantizationType[tensor.format])
    return values.reshape(tensor.shape)
