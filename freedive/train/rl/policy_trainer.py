"""The base class of trainers that learn from a model's own rollouts, and the packing of rollouts into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freedive.model import spec
from freedive.train.data.chat_tokenizer import ChatTokenizer
from freedive.train.data.sequences import Sequences
from freedive.train.model.kernels import FLOAT32
from freedive.train.model.net import Weights, stacked_params
from freedive.train.model.optim import Optimizer
from freedive.train.rl.rollouts import Rollout
from freedive.train.run import checkpoints
from freedive.train.run.checkpoints import Checkpoint
from freedive.train.run.config import Distillation, Reinforcement
from freedive.train.run.progress import Row


@dataclass
class PolicyTrainer:
    """Trains a policy on its own rollouts; ``folder`` is for checkpoints, ``precision`` one of kernels.PRECISIONS."""

    model: spec.ModelSpec
    settings: Reinforcement | Distillation
    chat_tokenizer: ChatTokenizer
    folder: Path
    weights: Weights
    step: int = field(default=0, kw_only=True)
    precision: str = field(default=FLOAT32, kw_only=True)

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(
            self.weights, stacked_params(self.model), 0.0, momentum=self.settings.momentum, precision=self.precision
        )
        for name in self.optimizer.trained:
            self.weights[name].requires_grad_()

    @property
    def num_steps(self) -> int:
        return self.settings.steps

    @property
    def save_every(self) -> int:
        return self.settings.save_every

    def resume(self) -> None:
        """Restores the newest checkpoint, if there is one."""
        if state := checkpoints.restore(self.folder, self.weights, self.optimizer.state):
            self.step = self.optimizer.num_steps = state["step"]

    def save(self) -> Path:
        """Writes a checkpoint of the current step."""
        return checkpoints.save(
            self.folder, self.step, Checkpoint(self.weights, self.optimizer.state, {"step": self.step})
        )


def rollout_stats(rollouts: Sequence[Rollout]) -> Row:
    """Returns the mean length of rollouts, the share that was truncated, and their entropy in nats per token."""
    return {
        "truncated": sum(not rollout.ended for rollout in rollouts) / len(rollouts),
        "answer_tokens": float(np.mean([len(rollout.logprobs) for rollout in rollouts])),
        "entropy": -float(np.mean(np.concatenate([rollout.logprobs for rollout in rollouts]))),
    }


def packed(rollouts: list[Rollout]) -> tuple[Sequences, Tensor, list[Tensor]]:
    """Packs rollouts; returns the batch, the log-probabilities [T] (0 in prompts), and each mixture's
    experts [T, k]."""
    texts, logprobs = [], []
    for rollout in rollouts:
        answered = np.arange(len(rollout.tokens)) >= rollout.prompt
        texts.append((np.array(rollout.tokens), answered.astype(np.float32)))
        logprobs.append(np.concatenate([np.zeros(rollout.prompt - 1), rollout.logprobs]))
    routes = torch.from_numpy(np.concatenate([np.stack(rollout.routes) for rollout in rollouts]))
    return Sequences.of(texts), torch.from_numpy(np.concatenate(logprobs)).float(), list(routes.unbind(1))


def micro_batches(rollouts: Sequence[Rollout], num_tokens: int) -> Iterator[list[int]]:
    """Yields indices of rollouts, sorted by length, in micro-batches of at most ``num_tokens`` tokens or of one
    rollout."""
    batch: list[int] = []
    free = num_tokens
    for index in sorted(range(len(rollouts)), key=lambda i: len(rollouts[i].tokens)):
        length = len(rollouts[index].tokens)
        if batch and length > free:
            yield batch
            batch, free = [], num_tokens
        batch.append(index)
        free -= length
    if batch:
        yield batch
