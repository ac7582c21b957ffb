"""Tiny random models of every family, made by transformers, and steps that any runner takes with them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tiny_configs import BASE, TINY

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.weight_store import WeightStore, pack_model
from freedive.families import describe
from freedive.model import spec
from freedive.model.batch import Batch, Runner, StateUpdates

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bailing
    import muse
    import pangu
    import step
    import torch
    import transformers

torch.set_num_threads(1)

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def maker_class(name: str) -> Any:
    """Returns the class that makes the model."""
    kind = f"{TINY[name][0]}ForCausalLM"
    return next(getattr(module, kind) for module in (transformers, pangu, bailing, step, muse) if hasattr(module, kind))


def maker_model(name: str, **changes: Any) -> Any:
    """Returns a model of transformers with random weights, also for those that are initialised to 0 or 1."""
    kind = maker_class(name)
    config = kind.config_class(**{**BASE, "max_position_embeddings": 1024, **TINY[name][1], **changes})
    slow = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = kind._from_config(config, **slow, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    weights = model.state_dict()
    with torch.no_grad():
        for weight_name, weight in weights.items():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise * 1.5 / weight.shape[-1] ** 0.5)
            else:
                weight.copy_(weight + 0.3 * noise if "norm" in weight_name else 0.5 * noise)
            if name.startswith("gemma4") and weight_name.endswith("q_norm.weight"):
                weight.mul_(len(weight) ** -0.5)  # Gemma 4 has no other scale of scores
    return model


def save(name: str, folder: Path, **options: Any) -> Any:
    """Writes the model to ``folder`` in its maker's format, or by the ``options`` of transformers; returns it."""
    model = maker_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    return model


@dataclass
class Tiny:
    """One model in three forms: transformers', and its description with weights for the reference and for
    the kernels."""

    maker: Any
    spec: spec.ModelSpec
    weights: dict[str, Floats]

    @cached_property
    def packed(self) -> WeightStore:
        return pack_floats(self.weights)

    def maker_logits(self, tokens: Sequence[int]) -> Floats:
        """Returns transformers' logits [T, vocab] of the whole prompt."""
        with torch.no_grad():
            logits: Floats = self.maker(torch.tensor([list(tokens)])).logits[0].numpy()
            return logits

    def maker_choices(self, tokens: Sequence[int]) -> list[Ints]:
        """Returns the experts [T, num_chosen] that transformers chooses in each mixture; each row is sorted."""
        choices: list[Ints] = []

        def note(_: Any, args: tuple[Any, ...]) -> None:
            choices.append(np.sort(args[1].numpy(), -1))

        def note_scores(_: Any, args: object, result: tuple[Any, ...]) -> None:
            scores = result[0]  # Llama 4 runs all experts on inputs times their scores
            choices.append(scores.nonzero()[:, 1].view(len(scores), -1).numpy())

        modules = dict(self.maker.named_modules())
        if self.spec.family == "llama4":
            routers = [module for name, module in modules.items() if name.endswith(".router")]
            hooks = [module.register_forward_hook(note_scores) for module in routers]
        else:
            experts = [module for name, module in modules.items() if name.endswith(".experts")]
            hooks = [module.register_forward_pre_hook(note) for module in experts]
        self.maker_logits(tokens)
        for hook in hooks:
            hook.remove()
        return choices


@cache
def tiny(name: str) -> Tiny:
    """Returns a tiny model that is read back from the folder that transformers saved it in."""
    with TemporaryDirectory() as folder:
        maker = save(name, Path(folder))
        checkpoint = open_checkpoint(Path(folder))
        model, rules = describe(checkpoint)
        tensors = canonical_tensors(checkpoint, model, rules)
        return Tiny(maker, model, {key: dequantize(tensor).copy() for key, tensor in tensors.items()})


def pack_floats(weights: dict[str, Floats]) -> WeightStore:
    """Packs weights for the kernels without quantisation."""
    return pack_model({name: float_tensor(name, w) for name, w in weights.items()})


def float_tensor(name: str, values: Floats) -> Tensor:
    """Returns ``values`` as a tensor of a file."""
    rows = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
    return Tensor(name, values.shape, "F32", rows.view(np.uint8))


def prompt(length: int, seed: int = 0, vocab: int = 128) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(3, vocab, length).tolist()
    return tokens


Schedule = Sequence[Sequence[tuple[int, int]]]
"""Steps; each consists of (request, number of its next tokens)."""


def take_steps(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    schedule: Schedule,
    tables: Sequence[Sequence[int]],
    given: Sequence[int] | None = None,
) -> list[Floats]:
    """Returns the logits [T, vocab] of each prompt, computed by ``schedule``, with the pages of ``tables``.

    Only the first ``given`` tokens of each prompt count as given, the others as generated (default: all are given).
    """
    given = given or [len(tokens) for tokens in prompts]
    done = [0] * len(prompts)
    logits: list[list[Floats]] = [[] for _ in prompts]
    for step in schedule:
        rows = runner.step(to_batch(prompts, step, done, tables, given))
        at = 0
        for request, count in step:
            logits[request].append(rows[at : at + count])
            done[request] += count
            at += count
    assert done == [len(tokens) for tokens in prompts], "the schedule does not fit the prompts"
    return [np.concatenate(parts) for parts in logits]


def to_batch(
    prompts: Sequence[Sequence[int]],
    step: Sequence[tuple[int, int]],
    done: Sequence[int],
    tables: Sequence[Sequence[int]],
    given: Sequence[int],
) -> Batch:
    """Returns a step that computes the logits of every row."""
    tokens = [token for request, count in step for token in prompts[request][done[request] : done[request] + count]]
    width = max(len(tables[request]) for request, _ in step)
    pages = [list(tables[request]) + [-1] * (width - len(tables[request])) for request, _ in step]
    lengths = np.array([count for _, count in step], np.int32)
    starts = np.array([done[request] for request, _ in step], np.int32)
    slots = np.array([request for request, _ in step], np.int32)
    return Batch(
        tokens=np.array(tokens, np.int32),
        lengths=lengths,
        starts=starts,
        pages=np.array(pages, np.int32),
        output_rows=np.arange(len(tokens), dtype=np.int32),
        prompts=np.array([given[request] for request, _ in step], np.int32),
        states=StateUpdates.plain(slots, starts, lengths),
    )
