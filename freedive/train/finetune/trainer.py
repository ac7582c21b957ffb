"""The trainer of fine-tuning: trains adapters, or a part of the model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from freedive.train.data.sequences import Sequences
from freedive.train.data.shards import Shards, Stream
from freedive.train.finetune.config import FinetuneStage
from freedive.train.finetune.lora import Tuned, TuneOps, weight_of
from freedive.train.model.net import losses, stacked_params
from freedive.train.model.ops import TrainOps
from freedive.train.model.optim import Optimizer
from freedive.train.run.progress import Row
from freedive.train.run.trainer import Trainer

HELD_OUT_TOKENS = 16_384
"""The most held-out tokens on which the loss is measured."""

MEASUREMENTS = 4
"""How often that is done during training."""


@dataclass(kw_only=True)
class FinetuneTrainer(Trainer):
    """Trains ``weights``: adapters for weights in ``base``, or some weights of ``base`` themselves.

    ``report`` receives the metrics of each step, some with the loss on ``held_out``.
    """

    stage: FinetuneStage
    base: Mapping[str, Tensor] = field(repr=False)
    held_out: Shards | None = None
    report: Callable[[Row], None] = lambda row: None

    def __post_init__(self) -> None:
        scale = self.stage.alpha / self.stage.rank if self.stage.rank else 0.0
        self.tuned = Tuned(stacked_params(self.model), self.base, self.weights, scale)
        super().__post_init__()

    @property
    def length(self) -> int:
        return self.stage.context

    def make_optimizer(self) -> Optimizer:
        """Returns an AdamW optimizer. Muon's updates do not get smaller for matrices that are already trained."""
        params = stacked_params(self.model)
        own = {name: params[weight_of(name)] for name in self.weights}
        return Optimizer(self.weights, own, self.stage.weight_decay, muon=False, precision=self.precision)

    def losses(self, part: Sequences) -> tuple[Tensor, TrainOps]:
        ops = TuneOps(part, precision=self.precision)
        return losses(self.model, self.tuned, part, ops), ops

    def advance(self) -> Row:
        row = super().advance()
        parts = (self.step - 1) * MEASUREMENTS // self.num_steps, self.step * MEASUREMENTS // self.num_steps
        if self.held_out and parts[0] < parts[1] and self.step < self.num_steps:  # the last one is measured afterwards
            row["held_out_loss"] = self.loss(self.held_out)
        self.report(row)
        return row

    @torch.no_grad()
    def loss(self, shards: Shards) -> float:
        """Returns the mean loss on other documents, in nats per token with loss weight 1."""
        batch = Stream(shards, 0).take(min(HELD_OUT_TOKENS, len(shards.tokens) - len(shards)), self.length)
        total = sum(self.losses(part)[0].item() for part in batch.split(self.stage.micro_tokens))
        return total / max(1.0, float(batch.weights.sum()))
