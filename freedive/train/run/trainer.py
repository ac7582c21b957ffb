"""The training loop of all supervised stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from torch import Tensor

from freedive.errors import UserError
from freedive.model import spec
from freedive.train.data.sequences import Sequences
from freedive.train.data.shards import Shards, Stream
from freedive.train.model.kernels import FLOAT32, peak_flops
from freedive.train.model.net import CHOICE_BIAS, Weights, initial, losses, mixtures, stacked_params, step_flops
from freedive.train.model.ops import TrainOps
from freedive.train.model.optim import Optimizer, learning_rate
from freedive.train.run import checkpoints
from freedive.train.run.checkpoints import Checkpoint
from freedive.train.run.config import Stage
from freedive.train.run.progress import Row

SAMPLES = 8
"""The number of samples that a stage takes of its model during training."""

FROZEN_BIAS = 0.1
"""The last share of a stage, in which the routers' choice biases do not change."""


@dataclass
class Seen:
    """Sums over the micro-batches of a step: losses, and for each mixture its expert loads and its router entropy."""

    loss: float
    balance_loss: float
    loads: list[Tensor]
    entropy: Tensor


@dataclass
class Trainer:
    """Weights, their optimizer and the data, between two steps; ``folder`` is for checkpoints.

    ``speak`` samples a text from the weights; ``precision`` is that of products (see kernels).
    """

    model: spec.ModelSpec
    stage: Stage
    shards: Shards
    folder: Path
    weights: Weights
    speak: Callable[[Weights], str] | None = None
    step: int = 0
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        self.optimizer = self.make_optimizer()
        self.stream = Stream(self.shards, self.stage.seed)
        for name in self.optimizer.trained:
            self.weights[name].requires_grad_()

    @property
    def length(self) -> int:
        """The maximum length of a document in tokens; longer ones are cut."""
        return self.model.max_context

    def make_optimizer(self) -> Optimizer:
        """Returns an optimizer of all weights that gradients train."""
        params = stacked_params(self.model)
        return Optimizer(self.weights, params, self.stage.weight_decay, precision=self.precision)

    def losses(self, part: Sequences) -> tuple[Tensor, TrainOps]:
        """Returns the summed loss of a micro-batch, and the operations that computed it."""
        ops = TrainOps(part, precision=self.precision)
        return losses(self.model, self.weights, part, ops, self.stage.mtp_loss), ops

    @property
    def num_steps(self) -> int:
        return self.stage.steps

    @property
    def save_every(self) -> int:
        return self.stage.save_every

    def resume(self) -> None:
        """Restores the newest checkpoint, if there is one."""
        if state := checkpoints.restore(self.folder, self.weights, self.optimizer.state):
            self.step = self.optimizer.num_steps = state["step"]
            self.stream.state = state["stream"]

    def save(self) -> Path:
        """Writes a checkpoint of the current step."""
        state = {"step": self.step, "stream": self.stream.state}
        return checkpoints.save(self.folder, self.step, Checkpoint(self.weights, self.optimizer.state, state))

    def news(self, row: Row) -> str:
        """Returns a summary of a step for the progress bar."""
        return f"loss {row['loss']:.3f}  {row['tokens_per_s']:,.0f} tokens/s"

    def advance(self) -> Row:
        """Makes one update and returns its metrics."""
        began, stage = time.perf_counter(), self.stage
        batch = self.stream.take(stage.step_tokens, self.length)
        seen = self._gradients(batch)
        lr = learning_rate(stage, self.step)
        norm = update(self.weights, self.optimizer, lr, stage.clip)
        if stage.balance_rate and self.step < (1 - FROZEN_BIAS) * stage.steps:
            balance(self.model, self.weights, seen.loads, stage.balance_rate)
        self.step += 1
        seconds = time.perf_counter() - began
        flops = batch.tokens.size * step_flops(self.model, batch.mean_context) / seconds
        return self._said() | {
            "step": self.step,
            "loss": seen.loss,
            "bits_per_byte": seen.loss / log(2) / self.shards.bytes_per_token,
            "lr": lr,
            "gradient_norm": norm,
            "tokens_per_s": batch.tokens.size / seconds,
            "flops": flops,
            "utilisation": flops / peak_flops(self.precision),
            "balance_loss": seen.balance_loss,
            "router_entropy": [round(each, 4) for each in seen.entropy.tolist()],
            "max_violation": [float(load.max() / load.mean() - 1) for load in seen.loads],
            "loads": [[round(share, 4) for share in (load / load.sum()).tolist()] for load in seen.loads],
        }

    def _said(self) -> Row:
        parts = (self.step - 1) * SAMPLES // self.num_steps, self.step * SAMPLES // self.num_steps
        return {"sample": self.speak(self.weights)} if self.speak and parts[0] < parts[1] else {}

    def _gradients(self, batch: Sequences) -> Seen:
        """Adds the gradients of the batch's mean loss to those of the weights; returns the sums of the step."""
        weight, num = max(1.0, float(batch.weights.sum())), len(mixtures(self.model))
        seen = Seen(0.0, 0.0, [torch.zeros(())] * num, torch.zeros(num))
        for part in batch.split(self.stage.micro_tokens):
            summed, ops = self.losses(part)
            loss = summed / weight
            uneven = sum(ops.balance, torch.zeros(())) * (len(part.lengths) / len(batch.lengths))
            (loss + self.stage.balance_loss * uneven).backward()
            seen.loss += loss.item()
            seen.balance_loss += uneven.item()
            loads = expert_loads(self.model, ops.chosen)
            seen.loads = [load + count for load, count in zip(seen.loads, loads, strict=True)]
            if num:
                seen.entropy += torch.stack(ops.entropy) * (part.tokens.size / batch.tokens.size)
        return seen


def expert_loads(model: spec.ModelSpec, chosen: Sequence[Tensor]) -> list[Tensor]:
    """Counts the tokens that chose each expert, for each mixture."""
    layers = [model.blocks[index].ffn for index in mixtures(model)]
    counts = [ffn.router.num_experts for ffn in layers if isinstance(ffn, spec.Experts)]
    return [each.flatten().bincount(minlength=count).float() for each, count in zip(chosen, counts, strict=True)]


def balance(model: spec.ModelSpec, weights: Weights, loads: Sequence[Tensor], rate: float) -> None:
    """Lowers the choice bias of overloaded experts and raises that of others by ``rate`` (Wang et al. 2024)."""
    for layer, load in zip(mixtures(model), loads, strict=True):
        bias = weights[f"layers.{layer}.ffn.{CHOICE_BIAS}"]
        bias += rate * (load.mean() - load).sign()
        bias -= bias.mean()


def update(weights: Weights, optimizer: Optimizer, lr: float, clip: float) -> float:
    """Updates ``weights`` by their gradients, clipped to the norm ``clip``, and clears these. Returns the norm.

    Raises UserError for gradients that are not finite.
    """
    gradients = {name: _gradient(weights[name]) for name in optimizer.trained}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    if not norm.isfinite():
        raise UserError("The gradient is not finite", "Choose a smaller learning rate (lr), and begin anew")
    optimizer.step(gradients, lr, shrink=min(1.0, clip / (float(norm) + 1e-6)))
    for name in gradients:
        weights[name].grad = None
    return float(norm)


def mean_loss(
    model: spec.ModelSpec, weights: Weights, shards: Shards, precision: str, num_tokens: int = 16_384
) -> float:
    """Returns the mean loss on held-out data, in nats per token with loss weight 1."""
    batch = Stream(shards, 0).take(num_tokens, model.max_context)
    with torch.no_grad():
        parts = ((part, TrainOps(part, precision=precision)) for part in batch.split(4096))
        total = sum(float(losses(model, weights, part, ops)) for part, ops in parts)
    return total / float(batch.weights.sum())


def start(model: spec.ModelSpec, seed: int, given: Mapping[str, Tensor] | None = None) -> Weights:
    """Returns the initial weights: copies of those ``given``, or random ones."""
    return initial(model, seed) if given is None else {name: value.clone() for name, value in given.items()}


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.contiguous()
