"""Optimizers in float32, Muon for matrices and AdamW for other weights, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from freedive.model.params import Param
from freedive.train.model import updates
from freedive.train.model.kernels import FLOAT32
from freedive.train.model.net import CHOICE_BIAS
from freedive.train.run.config import Stage

MOMENTUM = 0.95
BETAS, EPS = (0.9, 0.95), 1e-8
NEWTON_SCHULZ, ITERATIONS, EPS_NORM = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""The coefficients of the quintic, and the number of iterations, that bring singular values near 1 (Jordan et al. 2024,
Muon)."""


def learning_rate(stage: Stage, step: int) -> float:
    """Returns the learning rate of the update ``step``, counted from 0: warm-up, stable, decay."""
    warmup, decay = max(1, round(stage.warmup * stage.steps)), round(stage.decay * stage.steps)
    rising = min(1.0, (step + 1) / warmup)
    left = (stage.steps - step) / (decay + 1)
    falling = stage.lr_end + (1 - stage.lr_end) * min(1.0, left)
    return stage.lr * rising * falling


class Optimizer:
    """Updates ``weights`` in place by Muon and AdamW, or by AdamW alone without ``muon``. ``state`` is for checkpoints.

    ``momentum`` is Muon's; ``precision`` is that of its products (see kernels).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        table: Mapping[str, Param],
        weight_decay: float,
        *,
        muon: bool = True,
        momentum: float = MOMENTUM,
        precision: str = FLOAT32,
    ) -> None:
        self._weights = weights
        self._decay, self._momentum, self._precision = weight_decay, momentum, precision
        matrices = [name for name in weights if table[name].role in ("linear", "heads") and name != "head"]
        self._muon = matrices if muon else []
        self._adam = [name for name in weights if name not in self._muon and not name.endswith(CHOICE_BIAS)]
        self._no_decay = {name for name in weights if table[name].role in ("norm", "bias", "conv")}
        self.state = {f"momentum.{name}": torch.zeros_like(weights[name]) for name in (*self._muon, *self._adam)}
        self.state |= {f"square.{name}": torch.zeros_like(weights[name]) for name in self._adam}
        self.num_steps = 0

    @property
    def trained(self) -> list[str]:
        """The names of the weights that gradients train."""
        return [*self._muon, *self._adam]

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: float, shrink: float = 1.0) -> None:
        """Makes one update by ``gradients`` times ``shrink``; it overwrites ``gradients``."""
        self.num_steps += 1
        bias1, bias2 = (1 - beta**self.num_steps for beta in BETAS)
        moments = self._moments(self._adam, gradients, lr, lambda _: lr / bias1)
        updates.adamw(moments, BETAS, bias2, EPS, shrink, self._precision)
        # Muon's updates are scaled to the size of Adam's (Moonlight, Liu et al. 2025).
        moments = self._moments(self._muon, gradients, lr, lambda shape: lr * 0.2 * math.sqrt(max(shape[-2:])))
        updates.muon(moments, self._momentum, shrink, NEWTON_SCHULZ, EPS_NORM, ITERATIONS, self._precision)

    def _moments(
        self, names: list[str], gradients: Mapping[str, Tensor], lr: float, rate: Callable[[torch.Size], float]
    ) -> updates.Moments:
        weights = [self._weights[name] for name in names]
        return updates.Moments(
            weights,
            [gradients[name] for name in names],
            [self.state[f"momentum.{name}"] for name in names],
            [self.state[f"square.{name}"] for name in names if f"square.{name}" in self.state],
            [1.0 if name in self._no_decay else 1 - lr * self._decay for name in names],
            [rate(weight.shape) for weight in weights],
        )


def orthogonal(matrices: Tensor) -> Tensor:
    """Returns the nearest matrices [..., rows, columns] with singular values near 1.

    It is the reference of the kernels.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + EPS_NORM)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
