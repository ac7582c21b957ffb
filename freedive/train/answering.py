"""What all learning from a model's own answers shares: weights between two steps, and answers as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from freedive.model import spec
from freedive.train import checkpoints
from freedive.train.checkpoints import Checkpoint
from freedive.train.config import Distillation, Reinforcement
from freedive.train.net import Weights, stacked_params
from freedive.train.optim import Optimizer
from freedive.train.progress import Row
from freedive.train.rollouts import Sample
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
        self.optimizer = Optimizer(self.weights, stacked_params(self.model), weight_decay=0.0)
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

    def said(self, sample: Sample) -> str:
        """The answer, marks of thoughts included and that of its end not."""
        answer = sample.tokens[sample.prompt :]
        return self.words.tokenizer.decode(answer[: -1 if sample.ended else None], skip_special=False)


def about(samples: Sequence[Sample]) -> Row:
    """How long answers are, how many were cut off, and how open they were, in nats a token."""
    return {
        "truncated": sum(not sample.ended for sample in samples) / len(samples),
        "answer_tokens": float(np.mean([len(sample.odds) for sample in samples])),
        "entropy": -float(np.mean(np.concatenate([sample.odds for sample in samples]))),
    }
