"""What published model cards count; and the tensors of a description, without bytes."""

from __future__ import annotations

import numpy as np

from freedive.checkpoint.tensor import Tensor
from freedive.model.params import params
from freedive.model.size import size
from freedive.model.spec import Model


def total_billions(model: Model) -> float:
    """Weights in all, in 1e9."""
    return size(model).total / 1e9


def active_billions(model: Model) -> float:
    """Those that a token meets, in 1e9: of the experts only the chosen ones, of the embedding all."""
    read = size(model)
    return (read.active + (0 if model.tied else model.vocab_size * model.hidden_dim)) / 1e9


def active_without_vocabulary(model: Model) -> float:
    """Likewise, but for the embedding and the output head."""
    return active_billions(model) - model.vocab_size * model.hidden_dim * (1 if model.tied else 2) / 1e9


def hollow(model: Model) -> dict[str, Tensor]:
    """Every weight of ``model`` by its canonical name and with its shape, for tests of names."""
    empty = np.zeros((1, 0), np.uint8)
    return {name: Tensor(name, param.shape, "F32", empty) for name, param in params(model).items()}
