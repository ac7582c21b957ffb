"""A named tensor as it lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tensor:
    """Bytes of one tensor, usually memory-mapped, never copied until read.

    ``shape`` is row-major and logical (elements, not blocks): a linear weight is (out, in). ``format`` is a GGUF type
    name: F32, F16, BF16, Q8_0, Q4_0 ... ``data`` is uint8 [num_rows, bytes per row]; rows run over all but the last
    axis.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: its description as the maker wrote it, and its tensors by the maker's names.

    ``kind`` is "gguf" or "safetensors". ``config`` is GGUF metadata (key -> value) or the parsed config.json.
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
