"""What all learning from a model's own answers shares: weights between two steps, and answers as a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freedive.model import spec
from freedive.train import checkpoints
from freedive.train.checkpoints import Checkpoint
from freedive.train.config import Distillation, Reinforcement
from freedive.train.net import Weights, stacked_params
from freedive.train.optim import Optimizer
from freedive.train.progress import Row
from freedive.train.rollouts import Sample
from freedive.train.sequences import Sequences
from freedive.train.words import Words


@dataclass
class Answering:
    """Weights that learn from their own answers, between two steps. ``folder`` is where checkpoints go."""

    model: spec.Model
    settings: Reinforcement | Distillation
    words: Words
    folder: Path
    weights: Weights
    step: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.weights, stacked_params(self.model), 0.0, momentum=self.settings.momentum)
        for name in self.optimizer.trained:
            self.weights[name].requires_grad_()

    @property
    def num_steps(self) -> int:
        return self.settings.steps

    @property
    def save_every(self) -> int:
        return self.settings.save_every

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if state := checkpoints.restore(self.folder, self.weights, self.optimizer.state):
            self.step = self.optimizer.num_steps = state["step"]

    def save(self) -> Path:
        """Write a checkpoint of now."""
        return checkpoints.save(
            self.folder, self.step, Checkpoint(self.weights, self.optimizer.state, {"step": self.step})
        )


def about(samples: Sequence[Sample]) -> Row:
    """How long answers are, how many were cut off, and how open they were, in nats a token."""
    return {
        "truncated": sum(not sample.ended for sample in samples) / len(samples),
        "answer_tokens": float(np.mean([len(sample.odds) for sample in samples])),
        "entropy": -float(np.mean(np.concatenate([sample.odds for sample in samples]))),
    }


def joined(samples: list[Sample]) -> tuple[Sequences, Tensor, list[Tensor]]:
    """Samples laid end to end, the odds of their targets [T] (0 within prompts), and each mixture's choices [T, k]."""
    texts, odds = [], []
    for sample in samples:
        answered = np.arange(len(sample.tokens)) >= sample.prompt
        texts.append((np.array(sample.tokens), answered.astype(np.float32)))
        odds.append(np.concatenate([np.zeros(sample.prompt - 1), sample.odds]))
    routes = torch.from_numpy(np.concatenate([np.stack(sample.routes) for sample in samples]))
    return Sequences.of(texts), torch.from_numpy(np.concatenate(odds)).float(), list(routes.unbind(1))


def parts(samples: Sequence[Sample], num_tokens: int) -> Iterator[list[int]]:
    """Numbers of samples, equal lengths side by side, in parts of at most ``num_tokens``, or of one."""
    part: list[int] = []
    room = num_tokens
    for index in sorted(range(len(samples)), key=lambda i: len(samples[i].tokens)):
        length = len(samples[index].tokens)
        if part and length > room:
            yield part
            part, room = [], num_tokens
        part.append(index)
        room -= length
    if part:
        yield part
