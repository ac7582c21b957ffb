"""A run, stage by stage, in one folder: each goes on where it was stopped, and needs what those before have left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from math import log
from pathlib import Path

import torch
from torch import Tensor

from freedive import machine
from freedive.errors import UserError
from freedive.model import spec
from freedive.model.families import describe_config
from freedive.text.tokenizer import Tokenizer
from freedive.train import checkpoints, config, sources
from freedive.train.config import Json, Run, Stage
from freedive.train.export import export_folder, export_gguf
from freedive.train.net import unstacked
from freedive.train.progress import go_through
from freedive.train.report import write_report
from freedive.train.rl import Learner
from freedive.train.sampling import samples
from freedive.train.shards import Shards, write_shards
from freedive.train.trainer import Trainer, mean_loss, start
from freedive.train.words import Words, rendered, train_tokenizer

PRETRAIN, SFT, RL = "pretrain", "sft", "rl"
LEARNED_FROM = 20_000
"""Documents that the tokenizer is learned from, of either kind."""


@dataclass(frozen=True)
class Folder:
    """Where a run keeps what."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def vocabulary(self) -> Path:
        return self.tokenizer / "tokenizer.json"

    def data(self, stage: str, held_out: bool = False) -> Path:
        return self.root / "data" / f"{stage}{'-held-out' if held_out else ''}"

    def checkpoints(self, stage: str) -> Path:
        return self.root / "checkpoints" / stage

    def metrics(self, stage: str) -> Path:
        return self.root / f"{stage}.jsonl"

    @property
    def model(self) -> Path:
        return self.root / "model"


@dataclass(frozen=True)
class Bench:
    """A run at work: its settings, its folder, and a way to tell the user."""

    run: Run
    folder: Folder
    say: Callable[[str], None] = print

    def words(self) -> Words:
        if not self.folder.vocabulary.exists():
            raise UserError("There is no tokenizer yet", "Learn it first: freedive train tokenizer")
        return Words(Tokenizer.from_folder(self.folder.tokenizer))

    def hub_config(self) -> Json:
        words = self.words()
        return self.run.model.hub_config(words.end, words.bos)

    def model(self) -> spec.Model:
        return describe_config(self.hub_config())

    def shards(self, stage: str, held_out: bool = False) -> Shards:
        return Shards(self.folder.data(stage, held_out), self.folder.vocabulary)

    def trained(self, *stages: str) -> dict[str, Tensor]:
        """The weights that the last of ``stages`` has left that has been finished."""
        for stage in stages:
            if path := checkpoints.newest(self.folder.checkpoints(stage)):
                return dict(checkpoints.load(path).weights)
        raise UserError("There are no trained weights yet", f"Train them first: freedive train {stages[-1]}")


def tokenizer(bench: Bench) -> None:
    """Learn a vocabulary from documents and chats; tell how many bytes a token stands for."""
    data, size = bench.run.data, bench.run.model.vocab_size
    records = [record for make in _KINDS.values() for record in islice(make(data), LEARNED_FROM)]
    texts = [sources.characters(record) for record in records]
    if not texts:
        raise UserError("There is no text to learn from", "Name files with data.text")
    learned = train_tokenizer(texts, size, bench.folder.tokenizer)
    sample = texts[:1000]
    num_tokens = sum(len(learned.encode(text)) for text in sample)
    rate = sum(len(text.encode()) for text in sample) / num_tokens
    bench.say(f"tokenizer: {learned.vocab_size} tokens of {size} are used; {rate:.2f} bytes a token")


def data(bench: Bench) -> None:
    """Tokenise what the stages read; a small part is held out."""
    words, settings = bench.words(), bench.run.data
    for stage, make in _KINDS.items():
        parts = {
            held: [r for r in make(settings) if sources.is_held_out(r, settings) == held] for held in (False, True)
        }
        for held, records in parts.items():
            if not records:
                continue
            num_bytes = sum(len(sources.characters(record).encode()) for record in records)
            folder = bench.folder.data(stage, held)
            found = write_shards(folder, (rendered(r, words) for r in records), num_bytes, bench.folder.vocabulary)
            bench.say(f"data: {folder.name}: {found['documents']:,} documents, {found['tokens']:,} tokens")


def pretrain(bench: Bench) -> None:
    """From random weights, on documents."""
    _train(bench, PRETRAIN, bench.run.pretrain, None)


def sft(bench: Bench) -> None:
    """Go on from the pretrained weights, on chats: only what the assistant says is learned."""
    _train(bench, SFT, bench.run.sft, bench.trained(PRETRAIN))


def rl(bench: Bench) -> None:
    """Go on from the fine-tuned weights, on tasks whose answers are checked."""
    folder, settings = bench.folder, bench.run.rl
    weights = start(bench.model(), settings.seed, bench.trained(SFT))
    learner = Learner(bench.model(), settings, bench.words(), folder.checkpoints(RL), weights)
    learner.resume()
    go_through(learner, RL, folder.metrics(RL))


def evaluate(bench: Bench) -> None:
    """Bits per byte of what was held out."""
    model, found = bench.model(), {}
    for stage in _KINDS:
        if not bench.folder.data(stage, held_out=True).exists():
            continue
        shards, weights = bench.shards(stage, held_out=True), bench.trained(stage)
        loss = mean_loss(model, weights, shards)
        found[stage] = {"loss": loss, "bits_per_byte": loss / log(2) / shards.bytes_per_token}
        bench.say(f"eval: {stage}: loss {loss:.3f}, {found[stage]['bits_per_byte']:.3f} bits a byte")
    (bench.folder.root / "eval.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def export(bench: Bench) -> None:
    """Write the model as a Hugging Face folder and, for llama.cpp, as GGUF in F32 and Q8_0."""
    model, weights, settings = bench.model(), bench.trained(RL, SFT, PRETRAIN), bench.hub_config()
    export_folder(model, settings, weights, bench.folder.tokenizer, bench.folder.model)
    for format in ("F32", "Q8_0") if bench.run.model.num_experts else ():
        path = bench.folder.root / f"model-{format}.gguf"
        export_gguf(model, settings, weights, bench.folder.tokenizer, path, format)
    size = sum(weight.numel() for _, weight in unstacked(weights))
    bench.say(
        f"export: {size / 1e6:.1f} M parameters in {bench.folder.model}; talk to it: freedive chat {bench.folder.model}"
    )


def report(bench: Bench) -> None:
    """A page that tells how the run went, with samples of what the model writes."""
    told = samples(bench.folder.model) if (bench.folder.model / "config.json").exists() else {}
    path = write_report(bench.folder.root, bench.run, told)
    bench.say(f"report: {path}")


STAGES: dict[str, Callable[[Bench], None]] = {
    "tokenizer": tokenizer,
    "data": data,
    PRETRAIN: pretrain,
    SFT: sft,
    RL: rl,
    "eval": evaluate,
    "export": export,
    "report": report,
}
"""In the order of a whole run."""

SPEEDRUN = "speedrun"

_KINDS = {PRETRAIN: sources.documents, SFT: sources.chats}


def perform(stage: str, name: str, settings: list[str], root: Path | None) -> None:
    """Do one stage, or all of them, of the preset ``name``. A folder that has been begun keeps its settings."""
    torch.set_num_threads(machine.physical_cores())
    folder = Folder(root or Path("runs") / name)
    run = _settled(folder, name, settings)
    bench = Bench(run, folder)
    for each in STAGES if stage == SPEEDRUN else (stage,):
        began = time.perf_counter()
        STAGES[each](bench)
        note(folder, each, time.perf_counter() - began)


def _settled(folder: Folder, name: str, settings: list[str]) -> Run:
    if not folder.config.exists():
        run = config.preset(name, settings)
        folder.root.mkdir(parents=True, exist_ok=True)
        config.save(run, folder.config)
        return run
    run = config.load(folder.config)
    if settings and config.preset(name, settings) != run:
        raise UserError(
            f"{folder.root} was begun with other settings", "Leave them out, or name a new folder with --run"
        )
    return run


def note(folder: Folder, stage: str, seconds: float) -> None:
    """Keep how long a stage took, over all its sessions."""
    path = folder.root / "seconds.json"
    spent = json.loads(path.read_text("utf-8")) if path.exists() else {}
    spent[stage] = round(spent.get(stage, 0.0) + seconds, 1)
    path.write_text(json.dumps(spent, indent=2) + "\n", "utf-8")


def _train(bench: Bench, name: str, stage: Stage, given: dict[str, Tensor] | None) -> None:
    model, folder = bench.model(), bench.folder
    trainer = Trainer(model, stage, bench.shards(name), folder.checkpoints(name), start(model, stage.seed, given))
    trainer.resume()
    go_through(trainer, name, folder.metrics(name))
