"""Tensors and checkpoints as they are stored on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from freedive.arrays import Bytes


@dataclass(frozen=True)
class Tensor:
    """The bytes of one tensor, usually memory-mapped; they are not copied before they are read.

    ``shape`` is row-major and logical (elements, not blocks): a linear weight is (out, in). ``format`` is a name of
    :data:`freedive.checkpoint.file.BLOCKS`. Rows run over all but the last axis. ``source`` is the data, uint8
    [num_rows, bytes per row], or a function that computes its rows ``begin`` to ``end`` whenever they are read.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    source: Bytes | Callable[[int, int], Bytes]

    @property
    def data(self) -> Bytes:
        """The data, uint8 [num_rows, bytes per row]."""
        return self.source(0, math.prod(self.shape[:-1])) if callable(self.source) else self.source

    def rows(self, begin: int, end: int) -> Bytes:
        """Returns rows ``begin`` to ``end`` (excluded) of the data, without computing other rows."""
        return self.source(begin, end) if callable(self.source) else self.source[begin:end]


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: the maker's configuration, and the tensors by the maker's names.

    ``kind`` is "gguf" or "safetensors". ``config`` is GGUF metadata (key -> value) or the parsed config.json.
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
