"""What published model cards count; and the tensors of a description, without bytes."""

from __future__ import annotations

import numpy as np

from freedive.checkpoint.tensor import Tensor
from freedive.model.params import params
from freedive.model.spec import Experts, Model
from freedive.ops.reference import EXPERT_WEIGHTS


def num_weights(spec: Model) -> int:
    """All weights of a model."""
    return sum(param.size for param in params(spec).values())


def num_active(spec: Model) -> int:
    """Those that a token meets: of the experts only the chosen ones."""
    idle = 0
    table = params(spec)
    for index, layer in enumerate(spec.layers):
        if isinstance(layer.ffn, Experts):
            parts = (f"layers.{index}.ffn.experts.0.{part}" for part in EXPERT_WEIGHTS)
            expert = sum(table[part].size for part in parts if part in table)
            idle += (layer.ffn.router.num_experts - layer.ffn.router.num_chosen) * expert
    return num_weights(spec) - idle


def nothing(spec: Model) -> dict[str, Tensor]:
    """Every weight of ``spec``, by canonical name and with its shape, for tests of names."""
    empty = np.zeros((1, 0), np.uint8)
    return {name: Tensor(name, param.shape, "F32", empty) for name, param in params(spec).items()}
