"""Reversible changes of single tensors, of which rules (checkpoint/rules.py) are made.

Shapes and formats are computed immediately. Bytes are computed when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from freedive.arrays import Bytes
from freedive.checkpoint.dequantize import FLOATS, as_floats, dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.tensor import Tensor

Shape = tuple[int, ...]


class Step(Protocol):
    """A reversible change of one tensor."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Converts the maker's tensor to the canonical one."""

    def revert(self, tensor: Tensor) -> Tensor:
        """Converts the canonical tensor to the maker's."""


@dataclass(frozen=True)
class Permute:
    """The maker interleaves the rows of each head: (0, d/2, 1, d/2 + 1, ...); canonical rows are in order.

    llama.cpp stores the query and key weights of its `llama` architecture in this order, because it rotates neighbours
    while Hugging Face rotates halves. Only whole rows are moved, so this works for quantised formats too.
    """

    head_dim: int

    def apply(self, tensor: Tensor) -> Tensor:
        return self._swap(tensor, (-1, self.head_dim // 2, 2))

    def revert(self, tensor: Tensor) -> Tensor:
        return self._swap(tensor, (-1, 2, self.head_dim // 2))

    def _swap(self, tensor: Tensor, halves: tuple[int, int, int]) -> Tensor:
        def make() -> Bytes:
            rows = units(tensor)
            return rows[np.arange(len(rows)).reshape(halves).swapaxes(1, 2).ravel()]

        return made(tensor, make)


@dataclass(frozen=True)
class Transpose:
    """The last two axes of the maker's weight are swapped; quantised formats, whose blocks this splits, become F16."""

    def apply(self, tensor: Tensor) -> Tensor:
        def make() -> Bytes:
            floats = as_floats(tensor)
            values = floats.data.view(np.uint32 if floats.format == "F32" else np.uint16).reshape(tensor.shape)
            return np.ascontiguousarray(values.swapaxes(-1, -2)).view(np.uint8)

        *outer, rows, width = tensor.shape
        format = tensor.format if tensor.format in FLOATS else "F16"
        return made(tensor, make, (*outer, width, rows), format)

    revert = apply


@dataclass(frozen=True)
class Add:
    """The canonical weight is the maker's plus ``term``, in float32, for norms that multiply by 1 + weight."""

    term: float

    def apply(self, tensor: Tensor) -> Tensor:
        return self._add(tensor, self.term)

    def revert(self, tensor: Tensor) -> Tensor:
        return self._add(tensor, -self.term)

    def _add(self, tensor: Tensor, term: float) -> Tensor:
        return made(tensor, lambda: (dequantize(tensor) + np.float32(term)).view(np.uint8), format="F32")


@dataclass(frozen=True)
class Scale:
    """The canonical weight is the maker's times ``factor``, in float32."""

    factor: float

    def apply(self, tensor: Tensor) -> Tensor:
        return self._scale(tensor, self.factor)

    def revert(self, tensor: Tensor) -> Tensor:
        return self._scale(tensor, 1 / self.factor)

    def _scale(self, tensor: Tensor, factor: float) -> Tensor:
        return made(tensor, lambda: (dequantize(tensor) * np.float32(factor)).view(np.uint8), format="F32")


@dataclass(frozen=True)
class Exp:
    """The canonical weight is the exponential of the maker's, in float32: rates of decay are positive."""

    def apply(self, tensor: Tensor) -> Tensor:
        return made(tensor, lambda: np.exp(dequantize(tensor)).view(np.uint8), format="F32")

    def revert(self, tensor: Tensor) -> Tensor:
        return made(tensor, lambda: np.log(dequantize(tensor)).view(np.uint8), format="F32")


@dataclass(frozen=True)
class Row:
    """The maker's weight is a matrix of one row, [1, n]; the canonical one is a vector, [n]."""

    def apply(self, tensor: Tensor) -> Tensor:
        return replace(tensor, shape=tensor.shape[1:])

    def revert(self, tensor: Tensor) -> Tensor:
        return replace(tensor, shape=(1, *tensor.shape))


@dataclass(frozen=True)
class Flatten:
    """The maker's weight has the ``shape``, whatever its axes mean; the canonical one is a vector."""

    shape: Shape

    def apply(self, tensor: Tensor) -> Tensor:
        return made(tensor, lambda: tensor.data, (math.prod(tensor.shape),))

    def revert(self, tensor: Tensor) -> Tensor:
        return made(tensor, lambda: tensor.data, self.shape)


@dataclass(frozen=True)
class Halve:
    """Each row of the maker's weight is two canonical rows; a quantised format becomes F16 if this splits a block."""

    def apply(self, tensor: Tensor) -> Tensor:
        rows, width = tensor.shape
        cuts = width // 2 % BLOCKS[tensor.format][0] > 0
        whole = as_floats(tensor) if cuts else tensor
        return made(whole, lambda: whole.data, (2 * rows, width // 2))

    def revert(self, tensor: Tensor) -> Tensor:
        rows, width = tensor.shape
        return made(tensor, lambda: tensor.data, (rows // 2, 2 * width))


@dataclass(frozen=True)
class Taps:
    """The maker's weight is a depthwise convolution [dim, *middle, kernel], the canonical one [kernel * dim]."""

    kernel: int
    middle: Shape = ()

    def apply(self, tensor: Tensor) -> Tensor:
        return self._turn(tensor, (-1, self.kernel), (math.prod(tensor.shape),))

    def revert(self, tensor: Tensor) -> Tensor:
        dim = math.prod(tensor.shape) // self.kernel
        return self._turn(tensor, (self.kernel, -1), (dim, *self.middle, self.kernel))

    @staticmethod
    def _turn(tensor: Tensor, matrix: tuple[int, int], shape: Shape) -> Tensor:
        def make() -> Bytes:
            values = tensor.data.reshape(-1).view(np.uint32 if tensor.format == "F32" else np.uint16)
            return np.ascontiguousarray(values.reshape(matrix).T).view(np.uint8)

        return made(tensor, make, shape)


def units(tensor: Tensor) -> Bytes:
    """Returns the units that can be reordered, uint8 [num_units, bytes]: rows of a matrix, elements of a vector."""
    return tensor.data.reshape(num_units(tensor.shape), -1)


def num_units(shape: Shape) -> int:
    return math.prod(shape[:-1] or shape)


def made(tensor: Tensor, make: Callable[[], Bytes], shape: Shape | None = None, format: str | None = None) -> Tensor:
    """Returns a tensor like ``tensor`` whose bytes ``make`` computes."""
    shape = shape or tensor.shape
    num_rows = math.prod(shape[:-1])

    def rows(begin: int, end: int) -> Bytes:
        return make().reshape(num_rows, -1)[begin:end]

    return replace(tensor, shape=shape, format=format or tensor.format, source=rows)
