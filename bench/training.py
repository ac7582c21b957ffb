"""Compares training speed with transformers: python bench/training.py --preset nano

Configuration, weights, tokens and optimizer are the same (AdamW, fused if transformers supports it). Each variant first
runs alone, and losses must agree in float32. Then freedive and the best variants of transformers make interleaved
steps. Writes a table and a JSON file.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Protocol

import numpy as np
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from workers import FOLDER

from freedive import machine
from freedive.errors import UserError
from freedive.families import describe_config
from freedive.train.data.chat_tokenizer import train_tokenizer
from freedive.train.data.sequences import Sequences
from freedive.train.model.export import export_folder
from freedive.train.model.kernels import AUTO, BFLOAT16, FLOAT32, prepare, resolved
from freedive.train.model.net import initial, losses, stacked_params, step_flops
from freedive.train.model.ops import TrainOps
from freedive.train.model.optim import BETAS, EPS, Optimizer
from freedive.train.run import config
from freedive.train.run.trainer import update

LR, DECAY = 1e-3, 0.1
PROGRESS = Console(stderr=True)
FINALISTS = 2
"""The number of transformers' variants in the comparison; all of them would not fit into memory."""

AGREE = 2e-3
"""The largest relative difference of losses after the first steps, in float32."""


class Learner(Protocol):
    """A model that trains on batches."""

    def step(self, batch: Sequences) -> float:
        """Makes one update; returns the mean loss before it."""


class Ours:
    def __init__(self, run: config.Run, muon: bool, precision: str = FLOAT32) -> None:
        prepare()
        self.precision = resolved(precision)
        self.model = describe_config(run.model.hub_config(1, 0))
        self.weights = initial(self.model, 0)
        self.optimizer = Optimizer(self.weights, stacked_params(self.model), DECAY, muon=muon, precision=self.precision)
        self.micro_tokens = run.pretrain.micro_tokens
        for name in self.optimizer.trained:
            self.weights[name].requires_grad_()

    def step(self, batch: Sequences) -> float:
        total = 0.0
        for part in batch.split(self.micro_tokens):
            loss = losses(self.model, self.weights, part, TrainOps(part, precision=self.precision)) / batch.tokens.size
            loss.backward()
            total += loss.item()
        update(self.weights, self.optimizer, LR, clip=1.0)
        return total


class Theirs:
    """transformers' own model, in ``dtype``, with or without autocast."""

    def __init__(self, folder: Path, experts: str, dtype: torch.dtype, autocast: bool, micro_tokens: int) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model.set_experts_implementation(experts)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
        self.autocast, self.micro_tokens = autocast, micro_tokens

    def step(self, batch: Sequences) -> float:
        total = 0.0
        for part in batch.split(self.micro_tokens):
            tokens = torch.from_numpy(part.tokens).view(len(part.lengths), -1)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                logits = self.model(tokens, use_cache=False).logits
            targets = torch.from_numpy(part.targets)
            every = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum")
            loss = every / batch.tokens.size
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""The setting of `freedive train`: torch's waiting threads leave the cores to the kernels."""


class Remote:
    """A learner in a process of its own, so that no engine waits for the threads of another."""

    def __init__(self, name: str, preset: str, folder: Path, bf16: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        before = dict(os.environ)
        os.environ.update(SLEEPING if name.startswith("freedive") else {})
        self._process = context.Process(target=_learn, args=(there, name, preset, folder, bf16), daemon=True)
        self._process.start()
        os.environ.clear()
        os.environ.update(before)

    def step(self, batch: Sequences) -> tuple[float, float]:
        """Returns the loss before one update, and the seconds that the update took."""
        self._here.send(batch)
        loss, seconds = self._here.recv()
        return loss, seconds

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def _learn(orders: Any, name: str, preset: str, folder: Path, bf16: bool) -> None:
    """Runs the other process: one step for every batch that arrives."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(machine.physical_cores())
    learner = contestants(config.preset(preset), folder, bf16)[name]()
    while True:
        batch = orders.recv()
        began = time.perf_counter()
        loss = learner.step(batch)
        orders.send((loss, time.perf_counter() - began))


def contestants(run: config.Run, folder: Path, bf16: bool) -> dict[str, Callable[[], Learner]]:
    """Returns freedive with either optimizer, and transformers in each variant that trains."""
    size = run.pretrain.micro_tokens
    ways = {"eager": "eager", "grouped": "grouped_mm"}
    makers: dict[str, Callable[[], Learner]] = {
        "freedive": lambda: Ours(run, muon=False),
        "freedive, Muon": lambda: Ours(run, muon=True),
    }
    if resolved(AUTO) == BFLOAT16:
        makers["freedive bf16"] = lambda: Ours(run, muon=False, precision=BFLOAT16)
    for name, experts in ways.items():
        makers[f"transformers {name} fp32"] = partial(Theirs, folder, experts, torch.float32, False, size)
        if bf16:
            makers[f"transformers {name} autocast"] = partial(Theirs, folder, experts, torch.float32, True, size)
            makers[f"transformers {name} bf16"] = partial(Theirs, folder, experts, torch.bfloat16, False, size)
    return makers


def tried(learner: Remote, batches: list[Sequences]) -> dict[str, Any]:
    """Returns the loss of each of a few steps alone, and the seconds of the last."""
    steps = [learner.step(batch) for batch in batches]
    learner.close()
    return {"trial_losses": [loss for loss, _ in steps], "trial_seconds": steps[-1][1]}


def finalists(trials: dict[str, dict[str, Any]]) -> list[str]:
    """Returns all of freedive's variants, and the fastest of transformers."""
    ours = [name for name in trials if name.startswith("freedive")]
    theirs = sorted(trials.keys() - set(ours), key=lambda name: trials[name]["trial_seconds"])
    return ours + theirs[:FINALISTS]


def compete(learners: dict[str, Remote], batches: list[Sequences], warm_up: int) -> dict[str, dict[str, Any]]:
    """Makes interleaved steps; returns the seconds and the loss of each."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "losses": []} for name in learners}
    for index, batch in enumerate(track(batches, "In turns", console=PROGRESS)):
        for name, learner in learners.items() if index % 2 else reversed(learners.items()):
            loss, seconds = learner.step(batch)
            found[name]["losses"].append(loss)
            if index >= warm_up:
                found[name]["seconds"].append(seconds)
    for learner in learners.values():
        learner.close()
    return found


def main(
    preset: Annotated[str, typer.Option(help="nano, micro or small.")] = "nano",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 5,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before, in which the losses are compared.")] = 2,
    bf16: Annotated[bool, typer.Option(help="Have transformers try bfloat16, too.")] = True,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "results" / "training.json",
) -> None:
    """Compare training speed with transformers'."""
    run = config.preset(preset)
    shape, size = run.model, run.pretrain.step_tokens // run.model.max_context
    source = np.random.default_rng(0)
    batches = []
    for _ in range(warm_up + steps):
        tokens = source.zipf(1.3, (size, shape.max_context + 1)) % shape.vocab_size
        batches.append(Sequences.of([(row, np.ones(len(row), np.float32)) for row in tokens]))
    with TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizer(["a"], 300, folder / "tokenizer")
        model = describe_config(shape.hub_config(1, 0))
        export_folder(model, shape.hub_config(1, 0), initial(model, 0), folder / "tokenizer", folder / "model")
        start = partial(Remote, preset=preset, folder=folder / "model", bf16=bf16)
        names = contestants(run, folder / "model", bf16)
        trials = {each: tried(start(each), batches[:warm_up]) for each in track(names, "Alone", console=PROGRESS)}
        _check(trials)
        found = compete({each: start(each) for each in finalists(trials)}, batches, warm_up)
    for row in found.values():
        row["tokens_per_s"] = run.pretrain.step_tokens / median(row["seconds"])
    report = {
        "preset": preset,
        "cpu": machine.cpu_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "flops_per_token": step_flops(model, shape.max_context),
        "engines": {name: trial | found.get(name, {}) for name, trial in trials.items()},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    _print(report)


def _check(trials: dict[str, dict[str, Any]]) -> None:
    ours, theirs = (trials[name]["trial_losses"] for name in ("freedive", "transformers eager fp32"))
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if abs(one / other - 1) > AGREE:
            raise UserError(f"At step {step} the losses differ: {one:.5f} here, {other:.5f} with transformers")


def _print(report: dict[str, Any]) -> None:
    table = Table(f"{report['preset']}, {report['cpu']}", "tokens/s", "TFLOP/s", "of transformers' best", "last loss")
    engines = report["engines"]
    raced = {name: row for name, row in engines.items() if "tokens_per_s" in row}
    theirs = max(row["tokens_per_s"] for name, row in raced.items() if name.startswith("transformers"))
    for name, row in sorted(raced.items(), key=lambda each: -each[1]["tokens_per_s"]):
        speed = row["tokens_per_s"]
        flops = f"{speed * report['flops_per_token'] / 1e12:.3f}"
        table.add_row(name, f"{speed:,.0f}", flops, f"{speed / theirs:.2f}", f"{row['losses'][-1]:.4f}")
    for name in engines.keys() - raced.keys():
        table.add_row(name, f"alone: {engines[name]['trial_seconds']:.2f} s a step")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
