"""``freedive plan [MODEL]``: how models would run on this machine, before they are downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any

import typer

from freedive import machine
from freedive.commands.estimate import RECORD_BYTES, estimated_sizes, experts_in_memory
from freedive.commands.flags import REFERENCE
from freedive.commands.forecast import (
    DECODED_AFTER,
    PROMPTS,
    Described,
    Forecast,
    described,
    forecast,
    measure_machine,
    speed,
)
from freedive.commands.formatting import print_facts, size_text
from freedive.commands.timing import readable
from freedive.config import EngineConfig, load
from freedive.errors import UserError
from freedive.hub.catalogue import Entry, catalogue, entry_for
from freedive.model.batch import PAGE_TOKENS
from freedive.model.fewer_experts import with_experts_per_token
from freedive.model.size import state_bytes
from freedive.model.speed import MachineSpeed, TokenCost
from freedive.ops.memory_plan import default_budget, page_bytes

CLASSES = {"fast": 10.0, "usable": 3.0, "possible": 0.0}
"""Names of speeds, with the least tokens/s of each."""

TOO_LARGE = "too large"

Measure = Callable[[int, int], MachineSpeed]
"""Measures this machine, given the number of threads and the size of the records that are read from disk."""


def plan(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=f"{REFERENCE} Default: the catalogue.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory that the model may take, such as 8GiB.")] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Most tokens of prompt and answer together.")] = None,
    experts: Annotated[
        int | None, typer.Option("--experts-per-token", min=1, help="Lossy: route each token to fewer experts.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    config = load(EngineConfig, {"memory": memory, "max_context": context, "experts_per_token": experts})
    threads = config.threads or machine.physical_cores()
    if model is None:
        if context:
            raise UserError("--context is for one model", f"Name it: freedive plan MODEL --context {context}")
        rows = rank(measure_machine(threads, RECORD_BYTES), _budget(config))
        print(json.dumps(rows, indent=2)) if as_json else _print_ranking(rows, _budget(config))
        return
    facts = report(model, config, threads)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print_facts(_lines(facts))


def report(
    model: str, config: EngineConfig, threads: int, measure: Measure | None = None, available: int | None = None
) -> dict[str, Any]:
    """Returns what ``freedive plan MODEL --json`` prints.

    ``measure`` measures the machine, and ``available`` is the memory that is not in use; by default it is measured.
    Raises UserError if the model cannot be described, or does not fit.
    """
    known, context = _described(model), config.max_context
    if config.experts_per_token:
        known = replace(known, spec=with_experts_per_token(known.spec, config.experts_per_token))
    if context and context > known.spec.max_context:
        what = f"--context is {context}, but the model reads at most {known.spec.max_context} tokens"
        raise UserError(what, "Choose a smaller value", param="context")
    record_bytes = max((layer.record_bytes for layer in known.sizes.layers), default=RECORD_BYTES)
    on = (measure or measure_machine)(threads, record_bytes)
    found = forecast(known, config, on, threads, available)
    facts = {
        "model": model,
        "family": known.spec.family,
        "download_bytes": known.download_bytes,
        "assumed_bits": known.assumed_bits,
        "cache_bytes_per_token": page_bytes(known.spec, config.cache_format) // PAGE_TOKENS,
        "state_bytes": state_bytes(known.spec),
        "experts_per_token": config.experts_per_token,
    }
    return facts | _as_json(found) | {"machine": asdict(on)}


def _described(model: str) -> Described:
    """Describes a model. An error about one of the catalogue, which is only estimated without its files, says so."""
    try:
        return described(model)
    except UserError as error:
        if not entry_for(model):
            raise
        also = "freedive plan, without a model, estimates it from the catalogue"
        raise type(error)(error.what, f"{error.remedy}; {also}", param=error.param) from None


def _budget(config: EngineConfig) -> int:
    return config.memory_bytes or default_budget(machine.available_memory())


def _as_json(found: Forecast) -> dict[str, Any]:
    sizes = found.cost.sizes
    return {
        "weights": {
            "dense": sizes.dense,
            "embedding": sizes.embedding,
            "experts": sizes.experts,
            "routed_per_token": sizes.routed,
        },
        "memory": asdict(found.plan) | {"total": found.plan.total, "paged": found.plan.paged},
        "speed": asdict(found.speed),
        "resident_speed": asdict(found.resident),
        "doubling_bytes": found.doubling,
    }


def _lines(report: Mapping[str, Any]) -> dict[str, str]:
    weights, memory, on = report["weights"], report["memory"], report["machine"]
    lines = {"model": f"{report['model']}, {report['family']}"}
    if report["download_bytes"]:
        lines["download"] = size_text(report["download_bytes"])
    lines["weights"] = f"{size_text(weights['dense'])} dense"
    if weights["embedding"]:
        lines["weights"] += f", {size_text(weights['embedding'])} of embeddings, of which a token reads a row"
    if weights["experts"]:
        routed = size_text(weights["routed_per_token"])
        lines["weights"] += f", {size_text(weights['experts'])} experts, of which a token reads {routed}"
    if report["assumed_bits"]:
        lines["weights"] += f"; the configuration names no format, so each has {report['assumed_bits']} bits"
    lines["a token keeps"] = f"{size_text(report['cache_bytes_per_token'])} in the key-value cache"
    if report["state_bytes"]:
        lines["a request keeps"] = f"{size_text(report['state_bytes'])} of states, whatever its length"
    parts = ("dense", "slots", "cache", "states", "working", "process")
    shares = ", ".join(f"{_PARTS[part]} {size_text(memory[part])}" for part in parts if memory[part])
    lines["memory"] = f"{size_text(memory['total'])} of {size_text(memory['budget'])}: {shares}"
    lines["experts"] = _experts(memory) if weights["experts"] else "none"
    if report["experts_per_token"]:
        lines["experts"] += f"; a token reads {report['experts_per_token']} of a layer, which is lossy"
    lines["writing"] = f"{_range(report['speed'])} tokens/s after {DECODED_AFTER} tokens"
    firsts = report["speed"]["first_token_s"]
    lines["first token"] = ", ".join(f"{readable(firsts[count])} s after {count} tokens" for count in PROMPTS)
    lines["twice as fast"] = _doubling(report)
    lines["machine"] = (
        f"{size_text(on['memory'])}/s from memory, {size_text(on['disk'])}/s from disk, "
        f"{on['products'] / 1e12:.2g}e12 operations/s on prompts"
    )
    return lines


_PARTS = {
    "dense": "dense weights",
    "slots": "experts",
    "cache": "key-value cache",
    "states": "states",
    "working": "activations",
    "process": "process",
}
"""What the parts of a plan are called in a sentence."""


def _experts(memory: Mapping[str, Any]) -> str:
    if not memory["paged"]:
        return "resident: all are in memory"
    return f"paged: {memory['slots'] / memory['experts']:.0%} are in memory, the others are read from disk"


def _range(speeds: Mapping[str, float]) -> str:
    """Returns a speed, or the range from uniform routing to usual text."""
    worst, usual = readable(speeds["worst"]), readable(speeds["usual"])
    return worst if worst == usual else f"{worst} (uniform routing, the worst case) to {usual} (usual text)"


def _doubling(report: Mapping[str, Any]) -> str:
    if not report["memory"]["paged"]:
        return "not by more memory: every weight is in memory"
    if report["doubling_bytes"]:
        return f"with --memory {-(-10 * report['doubling_bytes'] >> 30) / 10:g}GiB"
    return f"by no memory; with all experts in memory {_range(report['resident_speed'])} tokens/s"


def rank(on: MachineSpeed, budget: int) -> list[dict[str, Any]]:
    """Returns the models of the catalogue that freedive runs: fast ones first, and of equal class the largest first."""
    rows = [ranked(entry, on, budget) for entry in catalogue().values() if entry.runs]
    order = [*CLASSES, TOO_LARGE]
    return sorted(rows, key=lambda row: (order.index(row["class"]), -row["parameters"]))


def ranked(entry: Entry, on: MachineSpeed, budget: int) -> dict[str, Any]:
    """Returns the facts of one model, estimated from its numbers of parameters and the size of its download."""
    sizes, slots = estimated_sizes(entry), experts_in_memory(entry, budget)
    row = {"name": entry.name, "parameters": entry.total, "active": entry.active}
    row |= {"download_bytes": round(entry.gigabytes * 1e9)}
    if slots is None:
        return row | {"class": TOO_LARGE, "paged": False, "speed": None}
    found = speed(TokenCost(sizes, 2e9 * entry.active), on, slots, EngineConfig().prefill_chunk)
    name = next(name for name, least in CLASSES.items() if found.worst >= least)
    return row | {"class": name, "paged": slots < sizes.experts, "speed": asdict(found)}


def _print_ranking(models: list[dict[str, Any]], budget: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for title in _COLUMNS:
        table.add_column(title, no_wrap=True)
    table.add_row(*_COLUMNS)
    for name, rows in groupby(models, key=itemgetter("class")):
        least = f" (from {CLASSES[name]:g} tokens/s)" if CLASSES.get(name) else ""
        table.add_row()
        table.add_row(f"{name}{least}", style="bold")
        for row in rows:
            table.add_row(*_row(row))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(
        f"\nEstimates for {size_text(budget)} of memory; freedive plan MODEL predicts one model. A range is from "
        f"uniform routing to usual text; the first token is that after a prompt of {PROMPTS[0]} tokens."
    )


_COLUMNS = ("MODEL", "SIZE", "DOWNLOAD", "EXPERTS", "TOKENS/S", "FIRST, S")


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    facts = row["name"], f"{row['parameters']:g}B", size_text(row["download_bytes"])
    if not (speeds := row["speed"]):
        return facts
    worst, usual = readable(speeds["worst"]), readable(speeds["usual"])
    figures = worst if worst == usual else f"{worst} to {usual}"
    share = "paged" if row["paged"] else ""
    return *facts, share, figures, readable(speeds["first_token_s"][PROMPTS[0]])
