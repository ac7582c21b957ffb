"""Summarises, prints and draws the measurements of bench/memory.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines import OURS, THEIRS
from picture import save, subplots
from report import Report, as_table
from workloads import MEGABYTES, SECONDS, START_TO_FIRST_TOKEN, TOKENS_PER_S, Comparison, spread

from freedive.commands.timing import readable

PEAK, READ, PLANNED = "peak memory", "read", "planned"

UNITS = {PEAK: MEGABYTES, READ: "MB/token", "major faults": "a token", "hits": "of choices"}
"""The units of rows by the last part of their names; others are speeds."""

DRAWN = ("decode 256 after 16", "prefill 2048")
"""The workloads of the picture."""

COLORS = {OURS: "#d62728", THEIRS: "#888888"}


def unit_of(row: str) -> str:
    if row == START_TO_FIRST_TOKEN.name:
        return SECONDS
    return UNITS.get(row.rpartition(": ")[2], TOKENS_PER_S)


def summary(values: Mapping[str, Sequence[Mapping[str, float] | None]], faults: Mapping[str, str]) -> dict[str, Any]:
    """Summarises one budget: for each row its unit, the spread of each engine, and of freedive's ratio to llama.cpp.

    ``values`` are by engine and round. A ratio joins the values of one round; only speeds, times and peaks have one.
    """
    names = dict.fromkeys(row for found in values.values() for each in found if each for row in each)
    results: dict[str, Any] = {}
    for row in names:
        unit = unit_of(row)
        engines = {name: [each[row] for each in found if each and row in each] for name, found in values.items()}
        pairs = [
            (ours[row], theirs[row])
            for ours, theirs in zip(values.get(OURS, ()), values.get(THEIRS, ()), strict=False)
            if ours and theirs and row in ours and row in theirs
        ]
        results[row] = {
            "unit": unit,
            "engines": {name: spread(found) for name, found in engines.items() if found},
            "ratios": {},
        }
        if pairs and unit in (TOKENS_PER_S, SECONDS, MEGABYTES):
            ours, theirs = (list(column) for column in zip(*pairs, strict=True))
            results[row]["ratios"][THEIRS] = spread(Comparison(unit, ours, theirs).ratios)
    return {"results": results, "faults": dict(faults)}


def markdown(report: Report) -> str:
    """Returns a table of all models, rows and budgets, and the faults."""
    parts = [
        f"# Models larger than memory: {report['cpu']}, {report['threads']} threads, {report['date']}",
        f"Medians of freedive and of {THEIRS} (mapped), and their ratio (lowest-highest; above 1: freedive is better), "
        "by the share of the model's file that fits into memory.",
    ]
    for title, model in report["models"].items():
        budgets = model["budgets"]
        names = dict.fromkeys(row for found in budgets.values() for row in found["results"])
        cells = [
            [f"{row}, {unit_of(row)}", *(_cell(found["results"].get(row)) for found in budgets.values())]
            for row in names
        ]
        parts += [f"## {title}", _about(model), as_table(["", *budgets], cells)]
        parts += [
            f"{name} fails at {share}: {fault}"
            for share, found in budgets.items()
            for name, fault in found["faults"].items()
        ]
    return "\n\n".join(parts) + "\n"


def _about(model: Report) -> str:
    tops = ", ".join(f"the most frequent {part} get {share:.0%}" for part, share in model["top_shares"].items())
    speed = model["disk_bytes_per_s"] / 1e9
    return f"{model['file_bytes'] / 1e9:.2f} GB; of the choices of experts {tops}; the disk reads {speed:.1f} GB/s."


def _cell(row: Report | None) -> str:
    if not row:
        return "-"
    medians = [_number(row["engines"].get(name)) for name in (OURS, THEIRS)]
    ratio = row["ratios"].get(THEIRS)
    return ", ".join(medians) + (f" ({ratio['median']:.2f}; {ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "")


def _number(values: Report | None) -> str:
    return readable(values["median"]) if values else "-"


def draw(report: Report, file: Path) -> None:
    """Draws tokens/s over the budget, a row for each model and a column for each workload of :data:`DRAWN`."""
    figure, cells = subplots(len(report["models"]), len(DRAWN))
    for axes, (title, model) in zip(cells, report["models"].items(), strict=True):
        for place, work in zip(axes, DRAWN, strict=True):
            _lines(place, model, work)
            place.set_title(f"{title}: {work}", fontsize=9)
    cells[0][0].legend()
    figure.suptitle(f"Tokens/s over memory. {report['cpu']}, {report['threads']} threads, {report['date']}")
    save(figure, file)


def _lines(axes: Any, model: Report, work: str) -> None:
    """Draws a line for each engine, with bars for the range, and the limit that the disk sets to what freedive read."""
    size = model["file_bytes"] / 1e9
    for name in (OURS, THEIRS):
        if found := _by_gigabytes(model, work, name):
            medians = [each["median"] for each in found.values()]
            down = [each["median"] - each["low"] for each in found.values()]
            up = [each["high"] - each["median"] for each in found.values()]
            axes.errorbar(list(found), medians, [down, up], marker="o", capsize=3, color=COLORS[name], label=name)
    highest = max((each["high"] for name in COLORS for each in _by_gigabytes(model, work, name).values()), default=1)
    axes.set_ylim(0, 1.2 * highest)  # the limit of the disk may lie far above
    reads = _by_gigabytes(model, f"{work}: {READ}", OURS)
    limits = {at: model["disk_bytes_per_s"] / 1e6 / read["median"] for at, read in reads.items() if read["median"]}
    axes.plot(list(limits), list(limits.values()), ":", color=COLORS[OURS], label="disk / bytes that freedive reads")
    axes.set_xlim(0, 1.05 * size)
    axes.set_xlabel(f"GB of memory, of a model of {size:.1f} GB", fontsize=8)


def _by_gigabytes(model: Report, row: str, engine: str) -> dict[float, Report]:
    """Returns the values of a row by the memory in GB."""
    found = {
        share: budget["results"].get(row, {"engines": {}})["engines"].get(engine)
        for share, budget in model["budgets"].items()
    }
    size = model["file_bytes"] / 1e9
    return {float(share.rstrip("%")) / 100 * size: values for share, values in found.items() if values}
