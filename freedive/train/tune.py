"""Fine-tuning a model of others, in one folder: an adapter for PEFT, and the whole model with it.

FOLDER/config.json  tokenizer/  data/  checkpoints/tune/  tune.jsonl  adapter/  model/
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
from freedive.train import checkpoints, config, sources, tuning
from freedive.train.base import Base, open_base
from freedive.train.config import TUNE
from freedive.train.export import canonical
from freedive.train.folder import Folder
from freedive.train.kernels import prepare, resolved
from freedive.train.lora import adapters
from freedive.train.parts import chosen, counts, table
from freedive.train.peft import misread, write_adapter
from freedive.train.progress import go_through
from freedive.train.shards import Shards, write_shards
from freedive.train.stages import note
from freedive.train.stories import Record
from freedive.train.tuner import Tuner
from freedive.train.tuning import Tuning
from freedive.train.turns import Document, documents

MERGE = "merge"


@dataclass(frozen=True)
class Bench:
    """Fine-tuning at work: its settings, its folder, and a way to tell the user."""

    run: Tuning
    folder: Folder
    say: Callable[[str], None] = print

    @cached_property
    def base(self) -> Base:
        return open_base(self.run.model)

    def shards(self, held_out: bool = False) -> Shards:
        return Shards(self.folder.data(TUNE, held_out), self.folder.vocabulary)

    def wanted(self) -> dict[str, Param]:
        """The weights that are trained, or have adapters. UserError for settings that the model does not go with."""
        tune, most = self.run.tune, self.base.model.max_context
        if not 2 <= tune.context <= most:
            raise UserError(f"tune.context is {tune.context}", f"The model takes 2 to {most} tokens")
        if tune.rank < 0:
            raise UserError(f"tune.rank is {tune.rank}", "Give it 0, for training the weights themselves, or more")
        return chosen(self.base.model, tune.parts, low_rank=tune.rank > 0)

    def tuner(self) -> Tuner:
        """Where the last checkpoint has left it, or at the beginning."""
        tune, wanted, base = self.run.tune, self.wanted(), self.base.weights()
        weights = adapters(wanted, tune.rank, tune.seed) if tune.rank else {name: base[name] for name in wanted}
        tuner = Tuner(
            model=self.base.model,
            stage=tune,
            shards=self.shards(),
            folder=self.folder.checkpoints(TUNE),
            weights=weights,
            base=base,
        )
        tuner.resume()
        return tuner


def tune(bench: Bench) -> None:
    """Tell what is trained, train it, and write what came of it."""
    if not bench.run.data.text:
        raise UserError("There is nothing to learn from", "Name files or folders with data.text")
    bench.wanted()  # what cannot be is refused before anything is done
    if not bench.folder.config.exists():  # it says that the run has begun, so it comes when there is something to read
        _make_data(bench)
        bench.folder.remember(bench.run.data.text)
        config.save(bench.run, bench.folder.config)
    tuner = bench.tuner()
    bench.say(table(counts(tuner.model, tuner.weights)))
    _tell_held_out(bench, tuner)
    go_through(tuner, TUNE, bench.folder.metrics(TUNE))
    _tell_held_out(bench, tuner)
    if bench.run.tune.rank:
        folder = bench.folder.root / "adapter"
        about = write_adapter(tuner.weights, bench.run.tune, bench.base.hub_rules, bench.run.model, folder)
        bench.say(f"{TUNE}: adapter for PEFT in {folder}")
        if lost := misread(about, bench.base.config["model_type"]):
            bench.say(f"{TUNE}: PEFT 0.21 misreads {len(lost)} of its parts, such as {lost[0]}; use the merged model")
    if bench.run.tune.merge:
        _write_model(bench, tuner)


def merge(bench: Bench) -> None:
    """Write the whole model with what has been trained so far."""
    if checkpoints.newest(bench.folder.checkpoints(TUNE)) is None:
        raise UserError(f"{bench.folder.root} holds nothing trained", f"Train first: freedive train {TUNE} MODEL")
    _write_model(bench, bench.tuner())


STAGES: dict[str, Callable[[Bench], None]] = {TUNE: tune, MERGE: merge}


def perform(stage: str, name: str, settings: list[str], root: Path | None) -> None:
    """Do one stage of fine-tuning the model ``name``. A folder that has been begun keeps its settings."""
    short = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2])
    folder = Folder(root or Path("runs") / f"{TUNE}-{short}")
    began = time.perf_counter()
    run = _settled(folder, name, settings)
    prepare(run.precision)
    folder.refuse_changed(run.data.text)
    STAGES[stage](Bench(run, folder))
    note(folder, stage, time.perf_counter() - began)


def _settled(folder: Folder, model: str, settings: list[str]) -> Tuning:
    asked = _resolved(tuning.tuning(model, settings))
    if not folder.config.exists():
        return asked
    run = _resolved(tuning.load(folder.config))
    if run.model != model or (settings and asked != run):
        raise UserError(
            f"{folder.root} was begun with other settings, for {run.model}",
            "Leave them out, or name a new folder with --run",
        )
    return run


def _resolved(run: Tuning) -> Tuning:
    return replace(run, precision=resolved(run.precision))


def _make_data(bench: Bench) -> None:
    """Tokenise what is read as the model would read it; a small part is held out, if that leaves anything to learn."""
    base, data = bench.base, bench.run.data
    parts = sources.parted(sources.read(data.text), data)
    made = {
        held: [(r, d) for r in some for d in documents(r, base.tokenizer, base.template)]
        for held, some in parts.items()
    }
    if not _learned(made[False]):
        made = {False: made[False] + made[True], True: []}
    if not _learned(made[False]):
        raise UserError("Nothing that the assistant says is in the data", "Name other files with data.text")
    base.write_text(bench.folder.tokenizer)
    for held_out in (True, False):  # what is trained on comes last: where it is there, all is
        if not _learned(made[held_out]):
            continue
        texts = {id(record): record for record, _ in made[held_out]}.values()
        num_bytes = sum(len(sources.characters(record).encode()) for record in texts)
        folder, vocabulary = bench.folder.data(TUNE, held_out), bench.folder.vocabulary
        found = write_shards(folder, (d for _, d in made[held_out]), num_bytes, vocabulary, base.model.vocab_size)
        bench.say(
            f"data: {folder.name}: {found['documents']:,} documents, {found['tokens']:,} tokens, "
            f"{_learned(made[held_out]):,} of them to be learned"
        )


def _learned(made: list[tuple[Record, Document]]) -> int:
    return sum(sum(weights) for _, (_, weights) in made)


def _tell_held_out(bench: Bench, tuner: Tuner) -> None:
    if bench.folder.data(TUNE, held_out=True).exists():
        bench.say(f"held out: loss {tuner.loss(bench.shards(held_out=True)):.3f} after {tuner.step} steps")


def _write_model(bench: Bench, tuner: Tuner) -> None:
    """As a Hugging Face folder; float32, so that it computes what was trained."""
    base, folder = bench.base, bench.folder.model
    shutil.copytree(bench.folder.tokenizer, folder, dirs_exist_ok=True)
    about: dict[str, Any] = {**base.config, "dtype": "float32"}
    about.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    tensors = maker_tensors(canonical(tuner.tuned.merge()), base.hub_rules)
    write_safetensors(folder / "model.safetensors", tensors, "name another folder with --run")
    bench.say(f"{MERGE}: the whole model in {folder}; talk to it: freedive chat {folder}")
