"""Compares sparse and dense models at equal wall-clock time: python bench/race.py --minutes 5

Texts, tokenizer and seed are the same. Each model first tries a few learning rates for a part of the time and keeps the
best. Then all train for the same number of seconds, interleaved by updates, with a learning-rate schedule over their
own seconds. All are evaluated on the same held-out texts. Results are written whichever model wins.
"""

from __future__ import annotations

import os

# Before torch is imported: its waiting threads leave the cores to the kernels.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from workers import FOLDER

from freedive import machine
from freedive.families import describe_config
from freedive.model import spec
from freedive.train.data.shards import Shards, Stream
from freedive.train.model.kernels import AUTO, prepare, resolved
from freedive.train.model.net import Weights, initial, losses, stacked_params, step_flops
from freedive.train.model.ops import TrainOps
from freedive.train.model.optim import Optimizer, learning_rate
from freedive.train.run import config
from freedive.train.run.context import RunContext
from freedive.train.run.folder import RunFolder
from freedive.train.run.stages import data, tokenizer
from freedive.train.run.trainer import balance, expert_loads, mean_loss, update

EVALUATIONS = 10
RATES = 1e-3, 2e-3, 4e-3, 8e-3
TRIAL = 6
"""A trial of a learning rate takes this fraction of the time: 1 / TRIAL."""
PARTS = 1000
"""The number of steps of the learning-rate schedule over the time."""


@dataclass
class Contender:
    """A model that trains, and its results: ``curve`` holds seconds, tokens and held-out bits per byte."""

    model: spec.ModelSpec
    stage: config.Stage
    muon: bool
    shards: Shards
    seconds: float = 0.0
    tokens: int = 0
    curve: list[tuple[float, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights: Weights = initial(self.model, 0)
        self.optimizer = Optimizer(
            self.weights, stacked_params(self.model), self.stage.weight_decay, muon=self.muon, precision=resolved(AUTO)
        )
        self.stream = Stream(self.shards, 0)
        for name in self.optimizer.trained:
            self.weights[name].requires_grad_()

    def advance(self, budget: float) -> None:
        """Makes one update, at the learning rate for its position in ``budget`` seconds."""
        began, stage = time.perf_counter(), self.stage
        batch = self.stream.take(stage.step_tokens, self.model.max_context)
        ops = TrainOps(batch, precision=resolved(AUTO))
        loss = losses(self.model, self.weights, batch, ops) / len(batch.tokens)
        (loss + stage.balance_loss * sum(ops.balance, torch.zeros(()))).backward()
        rate = learning_rate(stage, min(PARTS - 1, int(PARTS * self.seconds / budget)))
        update(self.weights, self.optimizer, rate, stage.clip)
        balance(self.model, self.weights, expert_loads(self.model, ops.chosen), stage.balance_rate)
        self.seconds += time.perf_counter() - began
        self.tokens += len(batch.tokens)

    def evaluate(self, held_out: Shards) -> None:
        bits = mean_loss(self.model, self.weights, held_out, resolved(AUTO)) / log(2) / held_out.bytes_per_token
        self.curve.append((self.seconds, self.tokens, bits))


def grouped_query(shape: config.Shape, kind: str, dense_dim: int, tied: bool) -> spec.ModelSpec:
    """Returns a dense model with grouped queries, as minimind (like Llama) and nanochat (normed queries
    and keys) have."""
    settings: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads // 2 if kind == "llama" else shape.num_heads,
        "head_dim": shape.value_dim,
        "intermediate_size": dense_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": shape.max_context,
        "tie_word_embeddings": tied,
        "attention_bias": False,
    }
    return describe_config(settings)


def contenders(shards: Shards) -> dict[str, Callable[[float], Contender]]:
    """Returns models of equal width, depth and, within a few percent, operations per token."""
    nano, dense = config.preset("nano"), config.preset("nano-dense")
    models = {name: describe_config(run.model.hub_config(1, 0)) for name, run in (("nano", nano), ("dense", dense))}

    def make(model: spec.ModelSpec, muon: bool) -> Callable[[float], Contender]:
        return lambda rate: Contender(model, replace(nano.pretrain, steps=PARTS, lr=rate), muon, shards)

    return {
        "nano: sparse, Muon": make(models["nano"], True),
        "nano: sparse, AdamW": make(models["nano"], False),
        "nano-dense, Muon": make(models["dense"], True),
        "like nanochat: dense, Muon": make(grouped_query(nano.model, "qwen3", 704, tied=False), True),
        "like minimind: dense, AdamW": make(grouped_query(nano.model, "llama", 704, tied=True), False),
    }


def tried(make: Callable[[float], Contender], budget: float, held_out: Shards) -> dict[float, float]:
    """Returns the held-out bits per byte after ``budget`` seconds at each learning rate."""
    found = {}
    for rate in RATES:
        contender = make(rate)
        while contender.seconds < budget:
            contender.advance(budget)
        contender.evaluate(held_out)
        found[rate] = contender.curve[-1][2]
    return found


def main(
    minutes: Annotated[float, typer.Option(help="That each contender trains.")] = 5.0,
    output: Annotated[Path, typer.Option(help="Where JSON and picture go.")] = FOLDER / "results" / "race.json",
) -> None:
    """Train sparse and dense models for equal seconds, in turns."""
    prepare()
    budget = minutes * 60
    with TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        context = RunContext(config.preset("nano"), folder)
        tokenizer(context)
        data(context)
        makers = contenders(context.shards("pretrain"))
        held_out = context.shards("pretrain", held_out=True)
        trials = {each: tried(make, budget / TRIAL, held_out) for each, make in track(list(makers.items()), "Rates")}
        rates = {each: min(found, key=found.__getitem__) for each, found in trials.items()}
        racing = {each: make(rates[each]) for each, make in makers.items()}
        for mark in range(1, EVALUATIONS + 1):
            while waiting := [each for each in racing.values() if each.seconds < budget * mark / EVALUATIONS]:
                for each in waiting:
                    each.advance(budget)
            for each in racing.values():
                each.evaluate(held_out)
            print(f"{mark / EVALUATIONS:.0%}: " + ", ".join(f"{k} {c.curve[-1][2]:.4f}" for k, c in racing.items()))
        report = {
            "cpu": machine.cpu_name(),
            "torch": torch.__version__,
            "precision": resolved(AUTO),
            "seconds": budget,
            "contenders": {each: _facts(contender) | {"rates": trials[each]} for each, contender in racing.items()},
        }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    _draw(report, output.with_suffix(".png"))


def _facts(contender: Contender) -> dict[str, Any]:
    context = contender.stream.take(contender.stage.step_tokens, contender.model.max_context).mean_context
    return {
        "rate": contender.stage.lr,
        "parameters": sum(weight.numel() for weight in contender.weights.values()),
        "flops_per_token": step_flops(contender.model, context),
        "tokens_per_s": contender.tokens / contender.seconds,
        "bits_per_byte": contender.curve[-1][2],
        "curve": contender.curve,
    }


def _draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5))
    for name, facts in report["contenders"].items():
        axis.plot([s for s, _, _ in facts["curve"]], [bits for _, _, bits in facts["curve"]], marker="o", label=name)
    axis.set(xlabel="seconds of training", ylabel="held-out bits per byte", title=report["cpu"], yscale="log")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
