"""The trainer of a model of others: of adapters, or of some of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from freedive.train.lora import Tuned, TuneOps, weight_of
from freedive.train.net import Sequences, TrainOps, losses, stacked_params
from freedive.train.optim import Optimizer
from freedive.train.shards import Shards, Stream
from freedive.train.trainer import Trainer
from freedive.train.tuning import Tune

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

    def take(self) -> list[Sequences]:
        """Whole documents that do not see each other: what is to be learned is the answer to a question alone.

        Behind others of its kind, an answer would be copied from them, and little be learned.
        """
        return list(_packed(self.stream.documents(self.stage.step_tokens, self.length), self.stage.micro_tokens))

    def losses(self, part: Sequences) -> tuple[Tensor, TrainOps]:
        ops = TuneOps(part.tokens, lengths=part.lengths)
        return losses(self.model, self.tuned, part, ops), ops

    @torch.no_grad()
    def loss(self, shards: Shards) -> float:
        """Of other documents: nats per token whose loss counts."""
        documents = Stream(shards, 0).documents(min(HELD_OUT_TOKENS, len(shards.tokens)), self.length)
        parts = list(_packed(documents, self.stage.micro_tokens))
        weight = sum(float(part.weights.sum()) for part in parts)
        return sum(self.losses(part)[0].item() for part in parts) / max(1.0, weight)


def _packed(documents: Iterable[Sequences], num_tokens: int) -> Iterator[Sequences]:
    """Side by side in single rows, each of at most ``num_tokens`` unless one document has more."""
    row: list[Sequences] = []
    for document in documents:
        if row and sum(each.tokens.size for each in row) + document.tokens.size > num_tokens:
            yield _joined(row)
            row = []
        row.append(document)
    if row:
        yield _joined(row)


def _joined(row: list[Sequences]) -> Sequences:
    """In order of length, since those of one length are attended to at once."""
    row = sorted(row, key=lambda each: each.tokens.size)
    tokens, targets = (np.concatenate(parts, 1) for parts in zip(*((r.tokens, r.targets) for r in row), strict=True))
    weights = np.concatenate([each.weights for each in row], 1)
    return Sequences(tokens, targets, weights, tuple(each.tokens.size for each in row))
