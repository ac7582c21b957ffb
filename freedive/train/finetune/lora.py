"""Low-rank adapters (Hu et al. 2021, LoRA): a matrix W is frozen, and B and A of W + scale B A are trained.

B A is never computed while training. y = x W' + scale (x A') B' needs one copy of a large model in memory; a merged
weight for each use would be a second copy, kept for the backward pass. It also saves the gradients of whole matrices, a
third of the work. Only one operation, the linear layer, handles a :class:`LowRank`; the decoder is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freedive.model.params import Param
from freedive.train.model.net import Weights
from freedive.train.model.ops import TrainOps

A, B = ".lora_a", ".lora_b"
"""Suffixes of the names of an adapter's two matrices."""


@dataclass(frozen=True)
class LowRank:
    """A frozen matrix ``base`` [out, in] with ``a`` [rank, in] and ``b`` [out, rank]; or stacks [E, ...] of all three.

    A base [heads, out, in] without a stack of adapters counts as one matrix [heads * out, in].
    """

    base: Tensor
    a: Tensor
    b: Tensor
    scale: float

    def dense(self) -> Tensor:
        """Computes the merged weight."""
        return self.base + (self.scale * (self.b @ self.a)).view_as(self.base)

    def unbind(self) -> list[LowRank]:
        """Returns the matrices of a stack, one for each expert."""
        stacks = zip(self.base.unbind(), self.a.unbind(), self.b.unbind(), strict=True)
        return [LowRank(*each, self.scale) for each in stacks]


def is_adaptable(param: Param) -> bool:
    """Returns whether a weight can have an adapter, which requires that it is a matrix."""
    return param.role not in ("norm", "bias", "conv")


def weight_of(name: str) -> str:
    """Returns the name of the weight that a trained tensor, an adapter's matrix or the weight itself, belongs to."""
    return name.removesuffix(A).removesuffix(B)


def adapters(wanted: Mapping[str, Param], rank: int, seed: int) -> Weights:
    """Makes A, random, and B, zero, for each weight in ``wanted``; at first they change nothing."""
    source = torch.Generator().manual_seed(seed)
    made = {}
    for name, param in wanted.items():
        *outer, out_dim, in_dim = param.shape
        stack = outer if param.role != "heads" else []
        rows = out_dim * outer[0] if param.role == "heads" else out_dim
        reach = in_dim**-0.5  # the initialization of linear layers in torch and PEFT
        made[name + A] = torch.empty(*stack, rank, in_dim).uniform_(-reach, reach, generator=source)
        made[name + B] = torch.zeros(*stack, rows, rank)
    return made


class Tuned(Mapping[str, Any]):
    """The weights that the decoder reads: trained ones, frozen ones of ``base``, and :class:`LowRank` ones.

    Weights that a linear layer does not read (embeddings, the output head, parts of latents) are merged for each use;
    they are few.
    """

    def __init__(self, table: Mapping[str, Param], base: Mapping[str, Tensor], trained: Weights, scale: float) -> None:
        self._table = table
        self._base = base
        self._trained = trained
        self._scale = scale

    def __getitem__(self, name: str) -> Tensor | LowRank:
        if name in self._trained:
            return self._trained[name]
        base = self._base[name]
        if name + A not in self._trained:
            return base
        weight = LowRank(base, self._trained[name + A], self._trained[name + B], self._scale)
        return weight if self._table[name].role in ("linear", "router") and name != "head" else weight.dense()

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)

    @torch.no_grad()
    def merge(self) -> Mapping[str, Tensor]:
        """Merges the adapters into ``base`` in place, and returns all weights."""
        for name, base in self._base.items():
            weight = self[name]
            base.copy_(weight.dense() if isinstance(weight, LowRank) else weight)
        return self._base


class TuneOps(TrainOps):
    """Training operations whose linear layers accept low-rank weights."""

    def linear(self, x: Tensor, weight: Tensor | LowRank, bias: Tensor | None) -> Tensor:
        if not isinstance(weight, LowRank):
            return super().linear(x, weight, bias)
        through = super().linear(super().linear(x, weight.a, None), weight.b, None)
        return super().linear(x, weight.base, bias) + weight.scale * through
