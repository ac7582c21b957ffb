"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, with Hugging Face names.

Where a maker's tensor holds several of our weights (gate and up; keys and values of latents), their A are stacked and
each B has columns of its own, so that PEFT sees one adapter of a larger rank. B passes the rules of the weight.

PEFT (0.21) supports two forms of expert adapters. If a Hugging Face folder has the matrices of each expert, so has an
adapter, ``mlp.experts.3.gate_proj``. With transformers 4 they are modules. For transformers 5, which stacks them, PEFT
converts such adapters of Mixtral, Qwen, OLMoE and similar models, but drops those of dense layers and shared experts
whose matrices have the same last names (DeepSeek, ERNIE). If the folder has stacks, they are ``target_parameters``, and
adapters are stacks in the order in which PEFT flattens them. PEFT reads those of gpt-oss. It does not read those of
Granite, whose modules have other names than its tensors, nor those of Llama 4, whose stacks it assumes to be
transposed. The merged model is read correctly by all programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.rule_steps import Transpose
from freedive.checkpoint.rules import Group, Rules, groups, maker_tensors
from freedive.train.finetune.config import FinetuneStage
from freedive.train.finetune.lora import A, B
from freedive.train.model.export import canonical
from freedive.train.model.net import unstacked

PREFIX = "base_model.model."
STACKED = "base_layer."
"""PEFT wraps a module once for each of its parameters, the first innermost; this is the name of the inner module."""


READS_STACKS = "gpt_oss"
"""The ``model_type`` whose stacked adapters PEFT reads correctly."""


def write_adapter(
    trained: Mapping[str, Tensor], tune: FinetuneStage, rules: Rules, base: str, folder: Path
) -> dict[str, Any]:
    """Writes the adapters in ``trained`` of the model ``base``, whose tensors ``rules`` name.

    Returns their configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    modules, stacks, parts = [], [], {}
    for theirs, a, b, num_parts in _fused(trained, rules):
        module = theirs.removesuffix(".weight")
        if a.ndim == 2:
            modules.append(module)
            tensors |= _module(module, a, b)
        else:
            stacks.append(theirs)
            tensors |= _stack(theirs, a, b)
        if num_parts > 1:
            parts[module] = num_parts
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": tune.rank,
        "lora_alpha": tune.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "target_parameters": stacks or None,
        "rank_pattern": {module: tune.rank * count for module, count in parts.items()},
        "alpha_pattern": {module: tune.alpha * count for module, count in parts.items()},
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return about


def misread(about: Mapping[str, Any], kind: str) -> list[str]:
    """Returns the modules of an adapter_config.json that PEFT (0.21) drops or misreads for a ``kind`` of model.

    The docstring of this module gives the reasons.
    """
    modules, stacks = about["target_modules"], about["target_parameters"] or []
    experts = {name for name in modules if re.search(r"\.experts\.\d+\.", name)}
    same = {name.rpartition(".")[2] for name in experts}
    dropped = [name for name in modules if name not in experts and name.rpartition(".")[2] in same]
    return dropped + ([] if kind == READS_STACKS else stacks)


def _fused(trained: Mapping[str, Tensor], rules: Rules) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Yields the name of each maker's tensor, its A [rank, in], B [out, rank] (or stacks), and how many weights it
    holds."""
    a = dict(unstacked(_ends(trained, A)))
    b = dict(unstacked(_ends(trained, B)))
    found = groups(b, rules)
    wide = {name: part for group in found.values() for name, part in _widened(group, b)}
    theirs = maker_tensors(canonical(wide), rules)
    for name, group in found.items():
        count = len(group.rule.ours)
        each = [torch.cat([a[group.names[index, part]] for part in range(count)]) for index in _indices(group)]
        made = torch.from_numpy(dequantize(theirs[name]).copy())
        if any(isinstance(step, Transpose) for step in group.rule.steps):
            made = made.mT
        yield name, torch.stack(each) if group.rule.stacks else each[0], made, count


def _ends(trained: Mapping[str, Tensor], end: str) -> dict[str, Tensor]:
    return {name.removesuffix(end): value for name, value in trained.items() if name.endswith(end)}


def _indices(group: Group) -> range:
    return range(len(group.names) // len(group.rule.ours))


def _widened(group: Group, b: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields B of each weight, padded to the columns of all weights in the same tensor of the maker."""
    count = len(group.rule.ours)
    for (_, part), name in group.names.items():
        rows, rank = b[name].shape
        wide = torch.zeros(rows, rank * count)
        wide[:, part * rank : (part + 1) * rank] = b[name].detach()
        yield name, wide


def _module(module: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    if module.endswith("embed_tokens"):
        return {f"{PREFIX}{module}.lora_embedding_A": b.mT, f"{PREFIX}{module}.lora_embedding_B": a.mT}
    return {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}


def _stack(theirs: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Flattens A [E, rank, in] and B [E, out, rank] as PEFT does: experts are the outer axis in A, the
    inner one in B."""
    module, _, parameter = theirs.rpartition(".")
    place = f"{PREFIX}{module}.{STACKED if parameter == 'gate_up_proj' else ''}"
    return {
        f"{place}lora_A.weight": a.flatten(0, 1),
        f"{place}lora_B.weight": b.permute(1, 2, 0).flatten(1),
    }
