"""The loop that every stage of supervised training goes through."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from torch import Tensor

from freedive.errors import UserError
from freedive.model import spec
from freedive.train import checkpoints
from freedive.train.checkpoints import Checkpoint
from freedive.train.config import Stage
from freedive.train.net import (
    CHOICE_BIAS,
    Sequences,
    TrainOps,
    Weights,
    initial,
    losses,
    mixtures,
    stacked_params,
    step_flops,
)
from freedive.train.optim import Optimizer, learning_rate
from freedive.train.progress import Row
from freedive.train.shards import Shards, Stream

STILL = 0.1
"""The last part of a stage, in which routers' biases rest."""


@dataclass
class Trainer:
    """Weights, their optimizer and the data, between two steps. ``folder`` is where checkpoints go."""

    model: spec.Model
    stage: Stage
    shards: Shards
    folder: Path
    weights: Weights
    step: int = 0

    def __post_init__(self) -> None:
        self.optimizer = self.make_optimizer()
        self.stream = Stream(self.shards, self.stage.seed)
        self.num_rows = max(1, self.stage.step_tokens // self.length)
        self.micro_rows = max(1, self.stage.micro_tokens // self.length)
        for name in self.optimizer.trained:
            self.weights[name].requires_grad_()

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.model.max_context

    def make_optimizer(self) -> Optimizer:
        """Of all weights that gradients move."""
        return Optimizer(self.weights, stacked_params(self.model), self.stage.weight_decay)

    def take(self) -> list[Sequences]:
        """What the next update is made of, in parts that go through the model at once."""
        return list(self.stream.take(self.num_rows, self.length).split(self.micro_rows))

    def losses(self, part: Sequences) -> tuple[Tensor, TrainOps]:
        """The summed loss of a part of the batch, and the operations that computed it."""
        ops = TrainOps(part.tokens)
        return losses(self.model, self.weights, part, ops), ops

    @property
    def num_steps(self) -> int:
        return self.stage.steps

    @property
    def save_every(self) -> int:
        return self.stage.save_every

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if state := checkpoints.restore(self.folder, self.weights, self.optimizer.state):
            self.step = self.optimizer.num_steps = state["step"]
            self.stream.state = state["stream"]

    def save(self) -> Path:
        """Write a checkpoint of now."""
        state = {"step": self.step, "stream": self.stream.state}
        return checkpoints.save(self.folder, self.step, Checkpoint(self.weights, self.optimizer.state, state))

    def news(self, row: Row) -> str:
        """A few words on a step."""
        return f"loss {row['loss']:.3f}  {row['tokens_per_s']:,.0f} tokens/s"

    def advance(self) -> Row:
        """One update; what is to be known of it."""
        began, stage = time.perf_counter(), self.stage
        parts = self.take()
        total, balance, loads = self._gradients(parts)
        lr = learning_rate(stage, self.step)
        norm = update(self.weights, self.optimizer, lr, stage.clip)
        self._balance(loads)
        self.step += 1
        seconds, num_tokens = time.perf_counter() - began, sum(part.tokens.size for part in parts)
        return {
            "step": self.step,
            "loss": total,
            "bits_per_byte": total / log(2) / self.shards.bytes_per_token,
            "lr": lr,
            "gradient_norm": norm,
            "tokens_per_s": num_tokens / seconds,
            "flops": num_tokens * step_flops(self.model, self.length) / seconds,
            "balance_loss": balance,
            "max_violation": [float(load.max() / load.mean() - 1) for load in loads],
            "loads": [[round(share, 4) for share in (load / load.sum()).tolist()] for load in loads],
        }

    def _gradients(self, parts: list[Sequences]) -> tuple[float, float, list[Tensor]]:
        """Adds to the weights' gradients: those of the mean loss. Returns it, the balance loss, and experts' loads."""
        weight = max(1.0, sum(float(part.weights.sum()) for part in parts))
        loads = [torch.zeros(0)] * len(mixtures(self.model))
        total = balance = 0.0
        for part in parts:
            summed, ops = self.losses(part)
            loss = summed / weight
            uneven = sum(ops.balance, torch.zeros(())) / len(parts)
            (loss + self.stage.balance_loss * uneven).backward()  # type: ignore[no-untyped-call]
            total, balance = total + loss.item(), balance + uneven.item()
            counts = [
                chosen.flatten().bincount(minlength=_num_experts(self.model, layer)).float()
                for layer, chosen in zip(mixtures(self.model), ops.chosen, strict=True)
            ]
            loads = [count + before if len(before) else count for before, count in zip(loads, counts, strict=True)]
        return total, balance, loads

    def _balance(self, loads: list[Tensor]) -> None:
        """Make overloaded experts less likely to be chosen (Wang et al. 2024), but not towards the end."""
        if not self.stage.balance_rate or self.step >= (1 - STILL) * self.stage.steps:
            return
        for layer, load in zip(mixtures(self.model), loads, strict=True):
            bias = self.weights[f"layers.{layer}.ffn.{CHOICE_BIAS}"]
            bias += self.stage.balance_rate * (load.mean() - load).sign()
            bias -= bias.mean()


def update(weights: Weights, optimizer: Optimizer, lr: float, clip: float) -> float:
    """Move ``weights`` by their gradients, whose norm is cut at ``clip`` first, and forget these. Returns the norm.

    Raises UserError for gradients that are not finite.
    """
    gradients = {name: _gradient(weights[name]) for name in optimizer.trained}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    if not norm.isfinite():
        raise UserError("The gradient is not finite", "Choose a smaller learning rate (lr), and begin anew")
    shrink = (clip / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(shrink)
    optimizer.step(gradients, lr)
    for name in gradients:
        weights[name].grad = None
    return float(norm)


def mean_loss(model: spec.Model, weights: Weights, shards: Shards, num_rows: int = 64) -> float:
    """Of held-out data: nats per token whose loss counts."""
    rows = Stream(shards, 0).take(num_rows, model.max_context)
    with torch.no_grad():
        total = sum(float(losses(model, weights, part, TrainOps(part.tokens))) for part in rows.split(16))
    return total / float(rows.weights.sum())


def start(model: spec.Model, seed: int, given: Mapping[str, Tensor] | None = None) -> Weights:
    """Weights to begin with: those ``given``, else random ones."""
    return initial(model, seed) if given is None else {name: value.clone() for name, value in given.items()}


def _num_experts(model: spec.Model, layer: int) -> int:
    ffn = model.layers[layer].ffn
    assert isinstance(ffn, spec.Experts)
    return ffn.router.num_experts


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
