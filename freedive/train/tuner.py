"""The trainer of a model of others: of adapters, or of some of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from freedive.train.config import Tune
from freedive.train.lora import Tuned, TuneOps, weight_of
from freedive.train.net import Sequences, TrainOps, losses, stacked_params
from freedive.train.optim import Optimizer
from freedive.train.shards import Shards, Stream
from freedive.train.trainer import Trainer

HELD_OUT_TOKENS = 16_384
"""At most so many tell how well other documents are predicted."""


@dataclass(kw_only=True)
class Tuner(Trainer):
    """Trains ``weights``: adapters of those in ``base``, or some of these themselves."""

    stage: Tune
    base: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        scale = self.stage.alpha / self.stage.rank if self.stage.rank else 0.0
        self.tuned = Tuned(stacked_params(self.model), self.base, self.weights, scale)
        super().__post_init__()

    @property
    def length(self) -> int:
        return self.stage.context

    def make_optimizer(self) -> Optimizer:
        """AdamW alone: Muon's updates are as large for matrices that have been trained as for new ones."""
        params = stacked_params(self.model)
        own = {name: params[weight_of(name)] for name in self.weights}
        return Optimizer(self.weights, own, self.stage.weight_decay, muon=False)

    def losses(self, part: Sequences) -> tuple[Tensor, TrainOps]:
        ops = TuneOps(part.tokens)
        return losses(self.model, self.tuned, part, ops), ops

    @torch.no_grad()
    def loss(self, shards: Shards) -> float:
        """Of other documents: nats per token whose loss counts."""
        num_tokens = min(HELD_OUT_TOKENS, len(shards.tokens))
        rows = Stream(shards, 0).take(-(-num_tokens // (self.length + 1)), self.length)
        total = sum(self.losses(part)[0].item() for part in rows.split(self.micro_rows))
        return total / max(1.0, float(rows.weights.sum()))
