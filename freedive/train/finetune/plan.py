"""What a fine-tuning run on some records will take: its steps, time and memory, before it begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from freedive.errors import UserError
from freedive.train.data.loss_masks import documents
from freedive.train.data.sources import parted
from freedive.train.data.stories import Record
from freedive.train.finetune.base_model import BaseModel
from freedive.train.finetune.config import FinetuneRun, Texts, finetune_run
from freedive.train.finetune.lora import adapters
from freedive.train.finetune.targets import target_params
from freedive.train.model.kernels import peak_flops, resolved
from freedive.train.model.net import step_flops

MAX_COUNTED = 1000
"""The most records whose tokens are counted; the others are assumed to be like them."""

UPDATES_PER_EPOCH = 8
LEAST_STEP_TOKENS, MOST_STEP_TOKENS = 128, 4096
MICRO_TOKENS = 1024
"""A small file has several updates an epoch, a large one has updates of the default size."""

ENOUGH_STEPS = 30
LEAST_EPOCHS, MOST_EPOCHS = 3, 10
"""A file is read until there were so many updates, but within these numbers of epochs."""

HELD_OUT_RECORDS, MOST_HELD_OUT = 4, 0.2
"""About so many records of a small file are held out, but no larger share."""

UTILISATION = 0.15
"""The share of the fastest products' speed that training reaches, counted as if all weights were trained."""

OVERHEAD_S = 15.0
"""Seconds for the start of the process, its data, two samples and the written model."""

PROCESS_BYTES = 0.5e9
"""Memory of torch and of the process itself."""


@dataclass(frozen=True)
class Plan:
    """The settings of a run and what it takes. ``seconds`` and ``memory_bytes`` are estimates.

    ``tokens`` are those of an epoch, of which ``learned`` have a loss; ``num_cut`` documents are longer than the
    context and are cut.
    """

    run: FinetuneRun
    epochs: float
    num_examples: int
    num_held_out: int
    tokens: int
    learned: int
    num_cut: int
    seconds: float
    memory_bytes: int
    disk_bytes: int


def plan(
    base: BaseModel, name: str, file: str, records: Sequence[Record], epochs: float | None, settings: Sequence[str]
) -> Plan:
    """Plans a run of the model ``name`` over ``records``, which ``file`` holds.

    ``epochs`` None leaves their number to the size of the file; ``settings`` are others that a user chose. Raises
    UserError if there is nothing to learn, or if the model cannot be trained on it.
    """
    texts = Texts(held_out=min(MOST_HELD_OUT, max(Texts().held_out, HELD_OUT_RECORDS / len(records))))
    parts = parted(records, texts)
    context = min(finetune_run(name).tune.context, base.model.max_context)
    lengths, learned, num_cut, share = _counted(base, parts[False], context)
    if not learned:
        raise UserError("Nothing that the assistant says is in the data", "Choose another file")
    tokens = max(1, round(sum(lengths) * share))
    step_tokens = min(MOST_STEP_TOKENS, max(LEAST_STEP_TOKENS, tokens // UPDATES_PER_EPOCH))
    epochs = epochs or min(MOST_EPOCHS, max(LEAST_EPOCHS, ceil(ENOUGH_STEPS * step_tokens / tokens)))
    steps = max(1, ceil(epochs * tokens / step_tokens))
    own = {
        "data.text": json.dumps([file], ensure_ascii=False),
        "data.held_out": texts.held_out,
        "tune.context": context,
        "tune.steps": steps,
        "tune.step_tokens": step_tokens,
        "tune.micro_tokens": min(step_tokens, MICRO_TOKENS),
        "tune.save_every": steps,  # nobody resumes it
    }
    run = finetune_run(name, [*(f"{key}={value}" for key, value in own.items()), *settings])
    mean = sum(length * length for length in lengths) / sum(lengths)
    flops = steps * step_tokens * step_flops(base.model, mean)
    return Plan(
        run=run,
        epochs=epochs,
        num_examples=len(records),
        num_held_out=len(parts[True]),
        tokens=tokens,
        learned=round(learned * share),
        num_cut=round(num_cut * share),
        seconds=OVERHEAD_S + flops / (UTILISATION * peak_flops(resolved(run.precision))),
        memory_bytes=_memory_bytes(base, run),
        disk_bytes=2 * base.num_bytes,
    )


def _counted(base: BaseModel, records: Sequence[Record], context: int) -> tuple[list[int], int, int, float]:
    """Returns lengths, learned tokens and cut documents of some records, and by what all are more."""
    some = records[:: ceil(len(records) / MAX_COUNTED)]
    lengths, learned, num_cut = list[int](), 0, 0
    for record in some:
        for tokens, weights in documents(record, base.tokenizer, base.template):
            lengths.append(len(tokens))
            learned += sum(weights)
            num_cut += len(tokens) > context + 1
    return lengths, learned, num_cut, len(records) / len(some)


def _memory_bytes(base: BaseModel, run: FinetuneRun) -> int:
    """Returns the memory for weights, adapters with gradients and moments, and the activations of a micro-batch."""
    tune, model = run.tune, base.model
    wanted = target_params(model, tune.target_names, low_rank=True)
    trained = sum(tensor.numel() for tensor in adapters(wanted, tune.rank, seed=0).values())
    widths = sum(sum(param.shape[-2:]) for param in wanted.values() if param.role == "linear")
    activations = 4 * tune.micro_tokens * (2 * widths + 3 * model.vocab_size)
    return int(base.num_bytes + 16 * trained + activations + PROCESS_BYTES)
