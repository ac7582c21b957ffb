"""Fine-tuning of an existing model in a run folder: writes a PEFT adapter and the merged model.

FOLDER/config.json tokenizer/ data/ checkpoints/tune/ tune.jsonl adapter/ model/
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from freedive.checkpoint.rules import maker_tensors
from freedive.checkpoint.safetensors import write_safetensors
from freedive.errors import UserError
from freedive.model.params import Param
from freedive.train.data import sources
from freedive.train.data.loss_masks import Document, documents
from freedive.train.data.shards import Shards, write_shards
from freedive.train.data.stories import Record
from freedive.train.finetune import config as finetune_config
from freedive.train.finetune.base_model import BaseModel, open_base_model
from freedive.train.finetune.config import FinetuneRun
from freedive.train.finetune.lora import adapters
from freedive.train.finetune.peft import misread, write_adapter
from freedive.train.finetune.targets import counts, table, target_params
from freedive.train.finetune.trainer import FinetuneTrainer
from freedive.train.model.export import canonical
from freedive.train.model.kernels import prepare, resolved
from freedive.train.run import checkpoints, config
from freedive.train.run.config import TUNE
from freedive.train.run.folder import RunFolder
from freedive.train.run.progress import Row, run_steps
from freedive.train.run.stages import note

MERGE = "merge"


@dataclass(frozen=True)
class FinetuneContext:
    """A fine-tuning run: its settings, its folder, and the functions that print messages and receive metrics.

    ``opened`` is the base model if it was opened already.
    """

    run: FinetuneRun
    folder: RunFolder
    say: Callable[[str], None] = print
    report: Callable[[Row], None] = lambda row: None
    opened: BaseModel | None = None

    @cached_property
    def base(self) -> BaseModel:
        return self.opened or open_base_model(self.run.model)

    def shards(self, held_out: bool = False) -> Shards:
        return Shards(self.folder.data(TUNE, held_out), self.folder.vocabulary)

    def wanted(self) -> dict[str, Param]:
        """Returns the weights that are trained or have adapters.

        Raises UserError for settings that the model does not support.
        """
        tune, most = self.run.tune, self.base.model.max_context
        if not 2 <= tune.context <= most:
            raise UserError(f"tune.context is {tune.context}", f"The model takes 2 to {most} tokens")
        if tune.rank < 0:
            raise UserError(f"tune.rank is {tune.rank}", "Give it 0, for training the weights themselves, or more")
        return target_params(self.base.model, tune.target_names, low_rank=tune.rank > 0)

    def trainer(self) -> FinetuneTrainer:
        """Returns the trainer at the last checkpoint, or at the beginning."""
        tune, wanted, base = self.run.tune, self.wanted(), self.base.weights()
        weights = adapters(wanted, tune.rank, tune.seed) if tune.rank else {name: base[name] for name in wanted}
        trainer = FinetuneTrainer(
            model=self.base.model,
            stage=tune,
            shards=self.shards(),
            folder=self.folder.checkpoints(TUNE),
            weights=weights,
            base=base,
            precision=self.run.precision,
            held_out=self.shards(held_out=True) if self.folder.data(TUNE, held_out=True).exists() else None,
            report=self.report,
        )
        trainer.resume()
        return trainer


def tune(context: FinetuneContext) -> FinetuneTrainer:
    """Prints what is trained, trains it, writes the adapter and the merged model, and returns the trainer.

    The ``base`` of the trainer then has the merged weights if the model was written.
    """
    if not context.run.data.text:
        raise UserError("There is nothing to learn from", "Name files or folders with data.text")
    context.wanted()  # raises UserError before any work is done
    # The settings are written after the data: a config.json means that the run has begun.
    if not context.folder.config.exists():
        _make_data(context)
        context.folder.remember(context.run.data.text)
        config.write_run(context.run, context.folder.config)
    trainer = context.trainer()
    context.say(table(counts(trainer.model, trainer.weights)))
    _print_held_out_loss(context, trainer)
    run_steps(trainer, TUNE, context.folder.metrics(TUNE))
    _print_held_out_loss(context, trainer)
    if context.run.tune.rank:
        folder = context.folder.root / "adapter"
        about = write_adapter(trainer.weights, context.run.tune, context.base.hub_rules, context.run.model, folder)
        context.say(f"{TUNE}: adapter for PEFT in {folder}")
        if lost := misread(about, context.base.config["model_type"]):
            context.say(f"{TUNE}: PEFT 0.21 misreads {len(lost)} of its parts, such as {lost[0]}; use the merged model")
    if context.run.tune.merge:
        _write_model(context, trainer)
    return trainer


def merge(context: FinetuneContext) -> None:
    """Writes the whole model with the weights of the newest checkpoint."""
    if checkpoints.newest(context.folder.checkpoints(TUNE)) is None:
        raise UserError(f"{context.folder.root} holds nothing trained", "Train first: freedive finetune MODEL")
    _write_model(context, context.trainer())


STAGES: dict[str, Callable[[FinetuneContext], object]] = {TUNE: tune, MERGE: merge}


def perform(stage: str, name: str, settings: list[str], root: Path | None) -> None:
    """Runs one stage of fine-tuning the model ``name``. A run that has begun keeps its settings."""
    short = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2])
    folder = RunFolder(root or Path("runs") / f"{TUNE}-{short}")
    began = time.perf_counter()
    run = _settled(folder, name, settings)
    prepare()
    folder.refuse_changed(run.data.text)
    STAGES[stage](FinetuneContext(run, folder))
    note(folder, stage, time.perf_counter() - began)


def _settled(folder: RunFolder, model: str, settings: list[str]) -> FinetuneRun:
    asked = _resolved(finetune_config.finetune_run(model, settings))
    if not folder.config.exists():
        return asked
    run = _resolved(finetune_config.read_run(folder.config))
    if run.model != model or (settings and asked != run):
        raise UserError(
            f"{folder.root} was begun with other settings, for {run.model}",
            "Leave them out, or name a new folder with --run",
        )
    return run


def _resolved(run: FinetuneRun) -> FinetuneRun:
    return replace(run, precision=resolved(run.precision))


def _make_data(context: FinetuneContext) -> None:
    """Tokenises the data with the model's template; holds out a small part if the rest has something to learn."""
    base, data = context.base, context.run.data
    parts = sources.parted(sources.read(data.text), data)
    made = {
        held_out: [(r, d) for r in records for d in documents(r, base.tokenizer, base.template)]
        for held_out, records in parts.items()
    }
    if not _learned(made[False]):
        made = {False: made[False] + made[True], True: []}
    if not _learned(made[False]):
        raise UserError("Nothing that the assistant says is in the data", "Name other files with data.text")
    base.write_text(context.folder.tokenizer)
    for held_out in (True, False):  # the training data comes last: if it exists, all data does
        if not _learned(made[held_out]):
            continue
        texts = {id(record): record for record, _ in made[held_out]}.values()
        num_bytes = sum(len(sources.characters(record).encode()) for record in texts)
        folder, vocabulary = context.folder.data(TUNE, held_out), context.folder.vocabulary
        found = write_shards(folder, (d for _, d in made[held_out]), num_bytes, vocabulary, base.model.vocab_size)
        context.say(
            f"data: {folder.name}: {found['documents']:,} documents, {found['tokens']:,} tokens, "
            f"{_learned(made[held_out]):,} of them to be learned"
        )


def _learned(made: list[tuple[Record, Document]]) -> int:
    return sum(sum(weights) for _, (_, weights) in made)


def _print_held_out_loss(context: FinetuneContext, trainer: FinetuneTrainer) -> None:
    if trainer.held_out:
        loss = trainer.loss(trainer.held_out)
        context.say(f"held out: loss {loss:.3f} after {trainer.step} steps")
        context.report({"step": trainer.step, "held_out_loss": loss})


def _write_model(context: FinetuneContext, trainer: FinetuneTrainer) -> None:
    """Writes a Hugging Face folder in float32, so that the model computes exactly what was trained."""
    base, folder = context.base, context.folder.model
    shutil.copytree(context.folder.tokenizer, folder, dirs_exist_ok=True)
    about: dict[str, Any] = {**base.config, "dtype": "float32"}
    about.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    tensors = maker_tensors(canonical(trainer.tuned.merge()), base.hub_rules)
    write_safetensors(folder / "model.safetensors", tensors, "name another folder with --run")
    context.say(f"{MERGE}: the whole model in {folder}; talk to it: freedive chat {folder}")
