"""A run, stage by stage, in one folder: each goes on where it was stopped, and needs what those before have left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from math import log
from pathlib import Path

from freedive.errors import UserError
from freedive.train import config, sources
from freedive.train.config import Reinforcement, Run
from freedive.train.distill import distill
from freedive.train.export import export_folder, export_gguf
from freedive.train.folder import CONTROL, DISTILL, NEWEST_FIRST, PRETRAIN, RL, SFT, Bench, Folder, write_json
from freedive.train.kernels import prepare, resolved
from freedive.train.net import unstacked
from freedive.train.progress import go_through
from freedive.train.report import write_report
from freedive.train.rl import Learner, passes
from freedive.train.sampling import samples
from freedive.train.shards import write_shards
from freedive.train.trainer import mean_loss, start
from freedive.train.words import rendered, train_tokenizer

LEARNED_FROM = 20_000
"""Documents that the tokenizer is learned from, of either kind."""

EVAL_SAMPLES, EVAL_KS = 16, (1, 8)
"""Answers to each held-out task, and how many of them there may be until one is right."""


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
        for held, records in sources.parted(make(settings), settings).items():
            if not records:
                continue
            num_bytes = sum(len(sources.characters(record).encode()) for record in records)
            folder = bench.folder.data(stage, held)
            found = write_shards(folder, (rendered(r, words) for r in records), num_bytes, bench.folder.vocabulary)
            bench.say(f"data: {folder.name}: {found['documents']:,} documents, {found['tokens']:,} tokens")
    bench.folder.remember(settings.text)


def pretrain(bench: Bench) -> None:
    """From random weights, on documents."""
    bench.supervised(PRETRAIN, bench.run.pretrain, None)


def sft(bench: Bench) -> None:
    """Go on from the pretrained weights, on chats: only what the assistant says is learned."""
    bench.supervised(SFT, bench.run.sft, bench.trained(PRETRAIN))


def rl(bench: Bench) -> None:
    """Go on from the fine-tuned weights, on tasks whose answers are checked."""
    _reinforce(bench, RL, bench.run.rl)


def control(bench: Bench) -> None:
    """The same with rewards that are thrown like a coin: what rises here has not been learned from answers."""
    _reinforce(bench, CONTROL, replace(bench.run.rl, reward="random"))


def evaluate(bench: Bench) -> None:
    """Bits per byte of what was held out, and how many held-out tasks are solved in one answer or one of several.

    The text is documents after pretraining, and chats after each stage from then on.
    """
    model, found = bench.model(), dict[str, dict[str, float]]()
    for stage in (PRETRAIN, SFT, RL, DISTILL):
        kind = PRETRAIN if stage == PRETRAIN else SFT
        if not (bench.has(stage) and bench.folder.data(kind, held_out=True).exists()):
            continue
        shards, weights = bench.shards(kind, held_out=True), bench.trained(stage)
        loss = mean_loss(model, weights, shards)
        found[stage] = {"loss": loss, "bits_per_byte": loss / log(2) / shards.bytes_per_token}
        bench.say(f"eval: {stage}: loss {loss:.3f}, {found[stage]['bits_per_byte']:.3f} bits a byte")
    for stage in (SFT, RL, DISTILL):
        if bench.has(stage):
            given = bench.trained(stage), bench.words(), bench.run.rl.num_eval
            found[f"tasks, {stage}"] = passed = passes(model, *given, EVAL_SAMPLES, EVAL_KS)
            bench.say(f"eval: {stage}: " + ", ".join(f"{name} {part:.0%}" for name, part in passed.items()))
    if not found:
        raise UserError("There is nothing to evaluate", "Train first: freedive train pretrain")
    write_json(bench.folder.root / "eval.json", found)


def export(bench: Bench) -> None:
    """Write the model as a Hugging Face folder and, for llama.cpp, as GGUF in F32 and Q8_0."""
    model, weights, settings = bench.model(), bench.trained(*NEWEST_FIRST), bench.hub_config()
    export_folder(model, settings, weights, bench.folder.tokenizer, bench.folder.model)
    for format in ("F32", "Q8_0") if bench.run.model.num_experts else ():
        path = bench.folder.root / f"model-{format}.gguf"
        export_gguf(replace(model, mtp=None), settings, weights, bench.folder.tokenizer, path, format)
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
    CONTROL: control,
    DISTILL: distill,
    "eval": evaluate,
    "export": export,
    "report": report,
}
"""In the order of a whole run."""

SPEEDRUN = "speedrun"

_KINDS = {PRETRAIN: sources.documents, SFT: sources.chats}


def perform(stage: str, name: str, settings: list[str], root: Path | None) -> None:
    """Do one stage, or all of them, of the preset ``name``. A folder that has been begun keeps its settings."""
    folder = Folder(root or Path("runs") / name)
    run = _settled(folder, name, settings)
    prepare(run.precision)
    folder.refuse_changed(run.data.text)
    bench = Bench(run, folder)
    every = [each for each in STAGES if each != DISTILL or run.distill.teacher]
    for each in every if stage == SPEEDRUN else (stage,):
        began = time.perf_counter()
        STAGES[each](bench)
        note(folder, each, time.perf_counter() - began)


def _settled(folder: Folder, name: str, settings: list[str]) -> Run:
    """The folder's settings. Those of distillation may come later: a teacher is often found when all else is done."""
    if not folder.config.exists():
        run = config.preset(name, settings)
        run = replace(run, precision=resolved(run.precision))
        folder.root.mkdir(parents=True, exist_ok=True)
        config.save(run, folder.config)
        return run
    begun = config.load(folder.config)
    run = config.changed(begun, settings)
    free = begun if folder.checkpoints(DISTILL).exists() else replace(begun, distill=run.distill)
    if run != free:
        raise UserError(
            f"{folder.root} was begun with other settings", "Leave them out, or name a new folder with --run"
        )
    if run != begun:
        config.save(run, folder.config)
    return run


def note(folder: Folder, stage: str, seconds: float) -> None:
    """Keep how long a stage took, over all its sessions."""
    path = folder.root / "seconds.json"
    spent = json.loads(path.read_text("utf-8")) if path.exists() else {}
    spent[stage] = round(spent.get(stage, 0.0) + seconds, 1)
    write_json(path, spent)


def _reinforce(bench: Bench, name: str, settings: Reinforcement) -> None:
    model = bench.model()
    weights = start(model, settings.seed, bench.trained(SFT))
    learner = Learner(model, settings, bench.words(), bench.folder.checkpoints(name), weights)
    learner.resume()
    go_through(learner, name, bench.folder.metrics(name))
