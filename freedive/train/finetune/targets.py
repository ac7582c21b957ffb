"""The parts of a model that fine-tuning can target, and the number of parameters that are trained in each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from freedive.errors import UserError
from freedive.model import spec
from freedive.model.params import Param
from freedive.train.finetune.lora import is_adaptable, weight_of
from freedive.train.model.net import CHOICE_BIAS, stacked_params

TARGETS = {
    "norms": r".*norm|.*\.out_scale",
    "embedding": r"(inputs\.)?embed",
    "attention": r"layers\.\d+\.attn\..+",
    "ffn": r"layers\.\d+\.ffn\.(shared\.)?(gate|up|down)(_bias)?",
    "experts": r"layers\.\d+\.ffn\.experts\..+",
    "router": r"layers\.\d+\.ffn\.(router|router_bias|choice_bias|expert_scale|shared_gate)",
    "inputs": r"inputs\.proj|layers\.\d+\.input\.(gate|proj)",
    "head": r"head(_bias)?",
}
"""The pattern of the weights of each target; the first match counts.

``ffn`` is the feed-forward of dense layers and of shared experts. The gate of shared experts belongs to ``router``,
since it weighs a feed-forward. ``inputs`` are the branches with a further input for each layer (Gemma 4 E2B).
"""


def target_of(name: str) -> str:
    """Returns the target that the weight of this canonical name belongs to."""
    return next(part for part, pattern in TARGETS.items() if re.fullmatch(pattern, name))


def target_params(model: spec.ModelSpec, targets: Iterable[str], *, low_rank: bool) -> dict[str, Param]:
    """Returns the weights of ``targets`` that gradients train; with ``low_rank`` only matrices.

    A router's choice bias is not one of them: it follows the experts' loads. Raises UserError for an unknown target, or
    for one that has nothing to train.
    """
    table = {name: param for name, param in stacked_params(model).items() if not name.endswith(CHOICE_BIAS)}
    wanted: dict[str, Param] = {}
    for part in targets:
        if part not in TARGETS:
            raise UserError(f"tune.targets names {part!r}, which is no part", f"Choose one of {', '.join(TARGETS)}")
        found = {name: param for name, param in table.items() if target_of(name) == part}
        if low_rank:
            found = {name: param for name, param in found.items() if is_adaptable(param)}
        if not found and part not in _OPTIONAL:
            raise UserError(_nothing(model, part, low_rank), "Leave it out of tune.targets")
        wanted |= found
    if not wanted:
        raise UserError("tune.targets leave nothing to train", f"Choose one of {', '.join(TARGETS)}")
    return {name: param for name, param in table.items() if name in wanted}


_OPTIONAL = ("attention", "ffn", "experts")
"""Targets of the default settings; a model may lack them."""


def _nothing(model: spec.ModelSpec, part: str, low_rank: bool) -> str:
    if part == "head" and model.tied:
        return "The output head is the embedding: tune.targets=embedding trains both"
    if part == "norms" and low_rank:
        return "Norms have no matrices for tune.rank: only tune.rank=0 trains them"
    return f"The model has no {part}"


@dataclass(frozen=True)
class Count:
    """The parameters of a target, and the number of trained parameters for it."""

    part: str
    total: int
    trained: int


def counts(model: spec.ModelSpec, trained: Mapping[str, Tensor]) -> list[Count]:
    """Counts the parameters of every target that ``model`` has."""
    totals, own = dict.fromkeys(TARGETS, 0), dict.fromkeys(TARGETS, 0)
    for name, param in stacked_params(model).items():
        totals[target_of(name)] += param.size
    for name, weight in trained.items():
        own[target_of(weight_of(name))] += weight.numel()
    return [Count(part, total, own[part]) for part, total in totals.items() if total]


def table(rows: Sequence[Count]) -> str:
    """Returns a text table of parameters, trained parameters and their share, with the sum in the last row."""
    whole = Count("all", sum(row.total for row in rows), sum(row.trained for row in rows))
    lines = [f"{'part':<10} {'parameters':>16} {'trained':>14}   share"]
    lines += [
        f"{row.part:<10} {row.total:>16,} {row.trained:>14,} {100 * row.trained / row.total:>6.2f}%"
        for row in (*rows, whole)
    ]
    return "\n".join(lines)
