"""The optimizers' updates on freedive's kernels, in one pass over the optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from freedive.native import _native
from freedive.train.model import kernels


@dataclass(frozen=True)
class Moments:
    """Weights, gradients and optimizer state by weight; ``keeps`` are weight-decay factors, ``rates``
    learning rates."""

    weights: list[Tensor]
    gradients: list[Tensor]
    momenta: list[Tensor]
    squares: list[Tensor]
    keeps: list[float]
    rates: list[float]

    def updates(self) -> _native.Updates:
        """Returns the same memory as an argument of the kernels."""
        tensors = self.weights, self.gradients, self.momenta, self.squares
        weights, gradients, momenta, squares = ([each.detach().numpy() for each in some] for some in tensors)
        return _native.Updates(weights, gradients, momenta, squares, self.keeps, self.rates)


def adamw(
    moments: Moments, betas: tuple[float, float], bias2: float, eps: float, shrink: float, precision: str
) -> None:
    """Makes one update of AdamW (Loshchilov & Hutter 2019) by gradients times ``shrink``; ``bias2`` corrects the
    squares."""
    kernels.current(precision).adamw(moments.updates(), *betas, bias2, eps, shrink)


def muon(
    moments: Moments,
    beta: float,
    shrink: float,
    coefficients: tuple[float, float, float],
    eps: float,
    turns: int,
    precision: str,
) -> None:
    """Makes one update of Muon (Jordan et al. 2024) by gradients times ``shrink``; it overwrites the gradients."""
    updates, training = moments.updates(), kernels.current(precision)
    training.nesterov(updates, beta, shrink)
    orthogonalise(moments.gradients, coefficients, eps, turns, precision)
    training.apply_update(updates)


def orthogonalise(
    stacks: Sequence[Tensor], coefficients: tuple[float, float, float], eps: float, turns: int, precision: str
) -> None:
    """Applies :func:`freedive.train.model.optim.orthogonal` in place to contiguous stacks [..., rows, columns]."""
    arrays = [stack.detach().view(-1, *stack.shape[-2:]).numpy() for stack in stacks]
    kernels.current(precision).orthogonalise(arrays, *coefficients, eps, turns)
