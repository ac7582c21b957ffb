"""Summarises and prints the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engines import THEIRS
from measure import Found
from roofline import Cost, Limits, expected_unique, router_of
from workloads import BATCH, WORKLOADS, spread

from freedive.commands.timing import readable
from freedive.model import spec

Report = Mapping[str, Any]

ALL = {work.name: work for work in WORKLOADS}


def summary(
    model: spec.ModelSpec, founds: Sequence[Found], costs: Mapping[str, Cost], limits: Limits
) -> dict[str, Any]:
    """Summarises all groups: freedive's values come from the first, its ratio to a peer from the group
    that they share."""
    router, measured = router_of(model), founds[0].unique_experts
    unique = {1: float(router.num_chosen if router else 0), BATCH.num_prompts: measured or 0.0}
    results: dict[str, Any] = {}
    for work, unit in founds[0].units.items():
        engines: dict[str, Any] = {}
        ratios: dict[str, Any] = {}
        for found in founds:
            for name, values in found.values.get(work, {}).items():
                engines.setdefault(name, spread(values))
            ratios |= {name: spread(pair.ratios) for name, pair in found.comparisons(work).items()}
        for name, values in engines.items():
            if work in ALL:
                rows = ALL[work].num_prompts
                values["limit"] = costs[name].fraction(ALL[work], values["median"], unique[rows], limits)
        results[work] = {"unit": unit, "engines": engines, "ratios": ratios}
    return {
        "engines": {name: said for found in founds for name, said in found.about.items()},
        "settings": [found.settings for found in founds],
        "limits": {"bytes_per_s": limits.bandwidth, "operations_per_s": dict(limits.peaks)},
        "costs": {name: _in_numbers(model, cost, unique) for name, cost in costs.items()},
        "unique_experts": {"measured": measured, "expected": expected_unique(model, BATCH.num_prompts)},
        "results": results,
    }


def _in_numbers(model: spec.ModelSpec, cost: Cost, unique: Mapping[int, float]) -> dict[str, float]:
    """Returns the basis of the fractions: bytes of a step by workload, and operations per prompt token."""
    steps = {work.name: cost.step_bytes(work, unique[work.num_prompts]) for work in WORKLOADS if not work.reads}
    return {"operations of a prompt's token": cost.token_operations, **steps}


def best_peer(row: Report) -> str | None:
    """Returns the peer that freedive is least ahead of."""
    ratios: Mapping[str, Any] = row["ratios"]
    return min(ratios, key=lambda name: ratios[name]["median"]) if ratios else None


def markdown(report: Report) -> str:
    """Returns the comparison as two tables: ratios of freedive to llama.cpp and to the best peer; medians of every
    engine."""
    models = report["models"]
    works = list(dict.fromkeys(work for found in models.values() for work in found["results"]))
    abouts = _abouts(report)
    ratios = [[model, *(_two_ratios(found["results"].get(work)) for work in works)] for model, found in models.items()]
    medians = [
        [model, f"{work}, {row['unit']}", *(_median(row["engines"].get(name)) for name in abouts)]
        for model, found in models.items()
        for work, row in found["results"].items()
    ]
    parts = (
        f"# Peer comparison: {report['cpu']}, {report['threads']} threads, {report['date']}",
        f"Ratio of freedive to {THEIRS}, then to the best peer (above 1: freedive is better):",
        as_table(["", *works], ratios),
        "Medians; in brackets: % of memory bandwidth (decode) or of the integer peak (prefill):",
        as_table(["", "", *abouts], medians),
        "Versions: " + ", ".join(f"{name}: {about['version']}" for name, about in abouts.items()) + ".",
    )
    return "\n\n".join(parts) + "\n"


def accuracy(quality: Report) -> str:
    """Returns a section on accuracy, from the results of ``bench/quality.py`` for each precision."""
    heads = ["", "mean KL", "99th percentile", "largest", "same first choice"]
    rows = [
        [engine, *(f"{row[key]:.1e}" for key in ("mean_kl", "p99_kl", "max_kl")), f"{row['top1']:.1%}"]
        for engine, row in quality["all"].items()
    ]
    return (
        f"\nAccuracy: KL divergence to float32, {quality['model']}, {quality['cpu']}. "
        f"In the tables above `freedive` has precision balanced:\n\n{as_table(heads, rows)}\n"
    )


def _abouts(report: Report) -> dict[str, Report]:
    """Returns what each engine that started reports about itself."""
    return {name: about for found in report["models"].values() for name, about in found["engines"].items()}


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _two_ratios(row: Report | None) -> str:
    if not row or not (best := best_peer(row)):
        return "-"
    return ", ".join(f"{row['ratios'][n]['median']:.2f}" if n in row["ratios"] else "-" for n in (THEIRS, best))


def _median(values: Report | None) -> str:
    if not values:
        return "-"
    return readable(values["median"]) + (f" ({values['limit']:.0%})" if values.get("limit") else "")


def print_tables(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=190)
    console.print(
        f"{report['date']}, {report['cpu']}, {report['threads']} threads, load {report['load_before']:.1f} before. "
        "Median and share of the machine's limit (lowest-highest); ratios are of pairs in one round"
    )
    names = list(dict.fromkeys(name for row in report["models"].values() for name in row["engines"]))
    table = Table("", "", "", *names, f"freedive / {THEIRS}", "freedive / best peer")
    for model, found in report["models"].items():
        for work, row in found["results"].items():
            cells = [_cell(row["engines"].get(name)) for name in names]
            best = best_peer(row)
            ratios = [_ratio(row["ratios"].get(THEIRS)), f"{_ratio(row['ratios'][best])} {best}" if best else ""]
            table.add_row(model, work, row["unit"], *cells, *ratios)
        table.add_section()
    console.print(table)
    _print_conditions(console, report)


def _print_conditions(console: Any, report: Report) -> None:
    for name, about in _abouts(report).items():
        console.print(f"{name}: {about['version']}, {about['settings']}")
    limits = [found["limits"] for found in report["models"].values()]
    peaks = {name: median(each["operations_per_s"][name] for each in limits) for name in limits[0]["operations_per_s"]}
    reads = median(each["bytes_per_s"] for each in limits)
    words = ", ".join(f"{peak / 1e12:.2f} TOPS {name}" for name, peak in peaks.items())
    console.print(f"limits: {reads / 1e9:.1f} GB/s read, {words}")
    for model, found in report["models"].items():
        console.print(f"{model}: {found['file_bytes'] / 1e6:.0f} MB")
        unique = found["unique_experts"]
        if unique["measured"]:
            console.print(
                f"{model}: a step of {BATCH.num_prompts} reads {unique['measured']:.1f} experts of a layer "
                f"({unique['expected']:.1f} if routes were random)"
            )
        for name, faults in found["faults"].items():
            for work, reason in faults.items():
                console.print(f"{model}: {name} cannot {work}: {reason}", markup=False)


def _cell(values: Report | None) -> str:
    if not values:
        return "-"
    share = f" {values['limit']:.0%}" if values.get("limit") else ""
    return f"{readable(values['median'])}{share}\n({readable(values['low'])}-{readable(values['high'])})"


def _ratio(values: Report | None) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f}-{values['high']:.2f})" if values else "-"
