"""Tiny models for fine-tuning, and their loss in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import maker_class

from freedive.checkpoint.rules import maker_tensors
from freedive.train.data.sequences import Sequences
from freedive.train.finetune import config as finetune_config
from freedive.train.finetune.base_model import BaseModel
from freedive.train.finetune.lora import TuneOps, adapters
from freedive.train.finetune.peft import write_adapter
from freedive.train.finetune.targets import target_params
from freedive.train.model.export import canonical
from freedive.train.model.net import Weights, losses

FAMILIES = (
    *("llama", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "gemma2", "gemma3"),
    *("granitemoeshared", "granite_swa", "ernie4_5", "ernie4_5_moe", "llama4", "mixtral"),
)
"""Families with all kinds of attention, experts and heads."""

SENTENCES = ("The boat is red.", "A diver sees a fish.", "Fish are quick and boats are slow.", "Red is a colour.")
SETTINGS = [
    *("tune.steps=6", "tune.step_tokens=128", "tune.micro_tokens=64", "tune.context=32", "tune.lr=3e-2"),
    *("tune.save_every=2", "tune.rank=4", "data.held_out=0.2"),
]


def theirs(folder: Path, name: str) -> Any:
    model = maker_class(name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


def batch(num: int = 2, length: int = 24) -> Sequences:
    source = np.random.default_rng(5)
    tokens, shares = source.integers(3, 300, (num, length + 1)), source.random((num, length + 1), np.float32)
    return Sequences.of(list(zip(tokens, shares, strict=True)))


def their_loss(model: Any, given: Sequences) -> torch.Tensor:
    logits = model(torch.from_numpy(given.tokens).view(len(given.lengths), -1)).logits.flatten(0, 1)
    targets, shares = torch.from_numpy(given.targets), torch.from_numpy(given.weights)
    return (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * shares).sum()


def our_loss(base: BaseModel, weights: Mapping[str, Any], given: Sequences) -> torch.Tensor:
    return losses(base.model, weights, given, TuneOps(given))


def names_of_theirs(base: BaseModel, weights: Weights) -> dict[str, torch.Tensor]:
    """Returns gradients or weights under the names of the folder."""
    named = maker_tensors(canonical(weights), base.hub_rules)
    return {
        name: torch.from_numpy(tensor.data.view(np.float32).reshape(tensor.shape).copy())
        for name, tensor in named.items()
    }


def adapted_at_random(base: BaseModel, folder: Path) -> tuple[finetune_config.FinetuneStage, Weights]:
    settings = finetune_config.finetune_run("x", ["tune.rank=4"]).tune
    adapted = adapters(target_params(base.model, settings.targets, low_rank=True), settings.rank, seed=0)
    for value in adapted.values():
        value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    write_adapter(adapted, settings, base.hub_rules, "base", folder)
    return settings, adapted
