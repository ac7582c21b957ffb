"""The stages of a training run in one folder; each can be resumed and needs the results of those before it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from math import log
from pathlib import Path

from freedive.errors import UserError
from freedive.train.data import sources
from freedive.train.data.chat_tokenizer import encode_record, train_tokenizer
from freedive.train.data.shards import write_shards
from freedive.train.model.export import export_folder, export_gguf
from freedive.train.model.kernels import prepare, resolved
from freedive.train.model.net import unstacked
from freedive.train.rl.distill import distill
from freedive.train.rl.grpo import GrpoTrainer, pass_rates
from freedive.train.run import config
from freedive.train.run.config import Reinforcement, Run
from freedive.train.run.context import CONTROL, DISTILL, NEWEST_FIRST, PRETRAIN, RL, SFT, RunContext
from freedive.train.run.folder import RunFolder, write_json
from freedive.train.run.progress import run_steps
from freedive.train.run.report import write_report
from freedive.train.run.sampling import samples
from freedive.train.run.trainer import mean_loss, start

LEARNED_FROM = 20_000
"""The most documents, and the most chats, that the tokenizer is trained on."""

EVAL_SAMPLES, EVAL_KS = 16, (1, 8)
"""The number of answers to each held-out task, and the k of the pass@k that are reported."""


def tokenizer(context: RunContext) -> None:
    """Trains a tokenizer on documents and chats, and prints the mean number of bytes per token."""
    data, size = context.run.data, context.run.model.vocab_size
    records = [record for make in _KINDS.values() for record in islice(make(data), LEARNED_FROM)]
    texts = [sources.characters(record) for record in records]
    if not texts:
        raise UserError("There is no text to learn from", "Name files with data.text")
    learned = train_tokenizer(texts, size, context.folder.tokenizer)
    sample = texts[:1000]
    num_tokens = sum(len(learned.encode(text)) for text in sample)
    rate = sum(len(text.encode()) for text in sample) / num_tokens
    context.say(f"tokenizer: {learned.vocab_size} tokens of {size} are used; {rate:.2f} bytes a token")


def data(context: RunContext) -> None:
    """Tokenises the data of the stages; a small part is held out."""
    chat_tokenizer, settings = context.chat_tokenizer(), context.run.data
    for stage, make in _KINDS.items():
        for held_out, records in sources.parted(make(settings), settings).items():
            if not records:
                continue
            num_bytes = sum(len(sources.characters(record).encode()) for record in records)
            folder = context.folder.data(stage, held_out)
            found = write_shards(
                folder, (encode_record(r, chat_tokenizer) for r in records), num_bytes, context.folder.vocabulary
            )
            context.say(f"data: {folder.name}: {found['documents']:,} documents, {found['tokens']:,} tokens")
    context.folder.remember(settings.text)


def pretrain(context: RunContext) -> None:
    """Trains random weights on documents."""
    context.supervised(PRETRAIN, context.run.pretrain, None)


def sft(context: RunContext) -> None:
    """Fine-tunes the pretrained weights on chats; only the assistant's messages are learned."""
    context.supervised(SFT, context.run.sft, context.trained(PRETRAIN))


def rl(context: RunContext) -> None:
    """Trains the fine-tuned weights by reinforcement on tasks with verifiable answers."""
    _reinforce(context, RL, context.run.rl)


def control(context: RunContext) -> None:
    """Trains with random rewards; an improvement here does not come from correct answers."""
    _reinforce(context, CONTROL, replace(context.run.rl, reward="random"))


def evaluate(context: RunContext) -> None:
    """Evaluates each stage: bits per byte on held-out text, and pass@k on held-out tasks.

    The text is documents after pretraining, and chats after the later stages.
    """
    model, found = context.model(), dict[str, dict[str, float]]()
    for stage in (PRETRAIN, SFT, RL, DISTILL):
        kind = PRETRAIN if stage == PRETRAIN else SFT
        if not (context.has(stage) and context.folder.data(kind, held_out=True).exists()):
            continue
        shards, weights = context.shards(kind, held_out=True), context.trained(stage)
        loss = mean_loss(model, weights, shards, context.run.precision)
        found[stage] = {"loss": loss, "bits_per_byte": loss / log(2) / shards.bytes_per_token}
        context.say(f"eval: {stage}: loss {loss:.3f}, {found[stage]['bits_per_byte']:.3f} bits a byte")
    for stage in (SFT, RL, DISTILL):
        if context.has(stage):
            given = context.trained(stage), context.chat_tokenizer(), context.run.rl.num_eval
            found[f"tasks, {stage}"] = passed = pass_rates(model, *given, EVAL_SAMPLES, EVAL_KS)
            context.say(f"eval: {stage}: " + ", ".join(f"{name} {part:.0%}" for name, part in passed.items()))
    if not found:
        raise UserError("There is nothing to evaluate", "Train first: freedive train pretrain")
    write_json(context.folder.root / "eval.json", found)


def export(context: RunContext) -> None:
    """Writes the model as a Hugging Face folder and, for llama.cpp, as GGUF in F32 and Q8_0."""
    model, weights, settings = context.model(), context.trained(*NEWEST_FIRST), context.hub_config()
    export_folder(model, settings, weights, context.folder.tokenizer, context.folder.model)
    for format in ("F32", "Q8_0") if context.run.model.num_experts else ():
        path = context.folder.root / f"model-{format}.gguf"
        export_gguf(replace(model, mtp=None), settings, weights, context.folder.tokenizer, path, format)
    size = sum(weight.numel() for _, weight in unstacked(weights))
    context.say(
        f"export: {size / 1e6:.1f} M parameters in {context.folder.model}; "
        f"talk to it: freedive chat {context.folder.model}"
    )


def report(context: RunContext) -> None:
    """Writes an HTML report of the run, with samples of the model's answers."""
    sampled = samples(context.folder.model) if (context.folder.model / "config.json").exists() else {}
    path = write_report(context.folder.root, context.run, sampled)
    context.say(f"report: {path}")


STAGES: dict[str, Callable[[RunContext], None]] = {
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
"""The function of each stage, in the order of a whole run."""

SPEEDRUN = "speedrun"

_KINDS = {PRETRAIN: sources.documents, SFT: sources.chats}


def perform(stage: str, name: str, settings: list[str], root: Path | None) -> None:
    """Runs one stage of the preset ``name``, or all of them. A run that has begun keeps its settings."""
    folder = RunFolder(root or Path("runs") / name)
    run = _settled(folder, name, settings)
    prepare()
    folder.refuse_changed(run.data.text)
    context = RunContext(run, folder)
    every = [each for each in STAGES if each != DISTILL or run.distill.teacher]
    for each in every if stage == SPEEDRUN else (stage,):
        began = time.perf_counter()
        STAGES[each](context)
        note(folder, each, time.perf_counter() - began)


def _settled(folder: RunFolder, name: str, settings: list[str]) -> Run:
    """Returns the settings of the folder; those of distillation may change until that stage begins."""
    if not folder.config.exists():
        run = config.preset(name, settings)
        run = replace(run, precision=resolved(run.precision))
        folder.root.mkdir(parents=True, exist_ok=True)
        config.write_run(run, folder.config)
        return run
    begun = config.read_run(folder.config)
    run = config.changed(begun, settings)
    free = begun if folder.checkpoints(DISTILL).exists() else replace(begun, distill=run.distill)
    if run != free:
        raise UserError(
            f"{folder.root} was begun with other settings", "Leave them out, or name a new folder with --run"
        )
    if run != begun:
        config.write_run(run, folder.config)
    return run


def note(folder: RunFolder, stage: str, seconds: float) -> None:
    """Adds ``seconds`` to the recorded duration of a stage."""
    path = folder.root / "seconds.json"
    spent = json.loads(path.read_text("utf-8")) if path.exists() else {}
    spent[stage] = round(spent.get(stage, 0.0) + seconds, 1)
    write_json(path, spent)


def _reinforce(context: RunContext, name: str, settings: Reinforcement) -> None:
    model = context.model()
    weights = start(model, settings.seed, context.trained(SFT))
    trainer = GrpoTrainer(
        model,
        settings,
        context.chat_tokenizer(),
        context.folder.checkpoints(name),
        weights,
        precision=context.run.precision,
    )
    trainer.resume()
    run_steps(trainer, name, context.folder.metrics(name))
