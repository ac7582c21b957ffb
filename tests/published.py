"""Parameter counts as in published model cards, and tensors of a description without data."""

from __future__ import annotations

import numpy as np

from freedive.checkpoint.tensor import Tensor
from freedive.model.params import params
from freedive.model.size import size
from freedive.model.spec import ModelSpec


def total_billions(model: ModelSpec) -> float:
    """Returns the number of parameters, in 1e9."""
    return size(model).total / 1e9


def active_billions(model: ModelSpec, *, embedding: bool = True) -> float:
    """Returns the active parameters, in 1e9: with the whole ``embedding``, as most makers count, or with
    one row of it."""
    counted = size(model)
    return (counted.active + (counted.embedding if embedding else 0)) / 1e9


def hollow(model: ModelSpec) -> dict[str, Tensor]:
    """Returns every weight of ``model`` by canonical name, with its shape but without data, for tests of names."""
    empty = np.zeros((1, 0), np.uint8)
    return {name: Tensor(name, param.shape, "F32", empty) for name, param in params(model).items()}
