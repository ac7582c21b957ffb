"""Low-rank adapters (Hu et al. 2021, LoRA): a matrix W stays, and W + scale B A is trained.

B A is never made while training. y = x W' + scale (x A') B' keeps a large model's memory at one copy of it, where
weights made for each use would be a second, kept for the way back; and it spares the gradients of whole matrices, a
third of the work. The price is paid by operations, not by the decoder: one of them, the linear, knows a
:class:`LowRank`.
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
"""What is trained of a weight, by the ends of names."""


@dataclass(frozen=True)
class LowRank:
    """A matrix ``base`` [out, in] that stays, ``a`` [rank, in] and ``b`` [out, rank]; or stacks [E, ...] of them.

    A base [heads, out, in] without a stack of adapters counts as one matrix [heads * out, in].
    """

    base: Tensor
    a: Tensor
    b: Tensor
    scale: float

    def dense(self) -> Tensor:
        """The sum, made."""
        return self.base + (self.scale * (self.b @ self.a)).view_as(self.base)

    def unbind(self) -> list[LowRank]:
        """Each matrix of a stack."""
        stacks = zip(self.base.unbind(), self.a.unbind(), self.b.unbind(), strict=True)
        return [LowRank(*each, self.scale) for each in stacks]


def is_adaptable(param: Param) -> bool:
    """Whether a weight has matrices."""
    return param.role not in ("norm", "bias", "conv")


def weight_of(name: str) -> str:
    """The weight that something trained, an adapter's or its own, belongs to."""
    return name.removesuffix(A).removesuffix(B)


def adapters(wanted: Mapping[str, Param], rank: int, seed: int) -> Weights:
    """A, random, and B, zero, for every weight of ``wanted``: at first they change nothing."""
    source = torch.Generator().manual_seed(seed)
    made = {}
    for name, param in wanted.items():
        *outer, out_dim, in_dim = param.shape
        stack = outer if param.role != "heads" else []
        rows = out_dim * outer[0] if param.role == "heads" else out_dim
        reach = in_dim**-0.5  # as torch and PEFT begin a linear
        made[name + A] = torch.empty(*stack, rank, in_dim).uniform_(-reach, reach, generator=source)
        made[name + B] = torch.zeros(*stack, rows, rank)
    return made


class Tuned(Mapping[str, Any]):
    """The weights that the decoder reads: those ``trained``, ``base`` ones that stay, and :class:`LowRank` ones.

    What a linear does not read, such as embeddings, output head and the parts of latents, is made for each use; these
    are few.
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
        """All weights as they are now, the adapted ones in place of the base's."""
        for name, base in self._base.items():
            weight = self[name]
            base.copy_(weight.dense() if isinstance(weight, LowRank) else weight)
        return self._base


class TuneOps(TrainOps):
    """Operations on whole sequences whose linears know low-rank weights."""

    def linear(self, x: Tensor, weight: Tensor | LowRank, bias: Tensor | None) -> Tensor:
        if not isinstance(weight, LowRank):
            return super().linear(x, weight, bias)
        through = super().linear(super().linear(x, weight.a, None), weight.b, None)
        return super().linear(x, weight.base, bias) + weight.scale * through
