"""Draws the peer comparison as a picture: tokens/s of each engine relative to llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines import ENGINES, THEIRS
from workloads import TOKENS_PER_S

from freedive.errors import UserError

COLUMNS = 2
COLORS = ("#d62728", "#f08a8b", "#888888", "#444444", "#1f77b4", "#2ca02c", "#98df8a", "#ff9f40")
"""The colors of the engines, in their order."""


def draw(report: Mapping[str, Any], file: Path) -> None:
    """Draws grouped bars for each model: tokens/s of every engine over those of llama.cpp, by workload."""
    models = report["models"]
    figure, grid = subplots(-(-len(models) // COLUMNS), COLUMNS)
    cells = grid.ravel()
    handles: dict[str, Any] = {}
    for axes, (model, found) in zip(cells, models.items(), strict=False):
        handles |= _bars(axes, found["results"])
        axes.set_title(model)
    for axes in cells[len(models) :]:
        axes.set_visible(False)
    figure.suptitle(
        f"Tokens/s, times those of {THEIRS} (medians). {report['cpu']}, {report['threads']} threads, {report['date']}"
    )
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    save(figure, file)


def subplots(num_rows: int, num_columns: int) -> tuple[Any, Any]:
    """Returns a figure and its axes [num_rows, num_columns]. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("A picture needs matplotlib", "Install it: pip install matplotlib") from None

    figure = Figure(figsize=(12, 3 * num_rows + 0.8), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def _bars(axes: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    """Draws the bars; returns one bar of each engine for the legend."""
    works = [work for work, row in results.items() if row["unit"] == TOKENS_PER_S and THEIRS in row["engines"]]
    names = [name for name in ENGINES if any(name in results[work]["engines"] for work in works)]
    colors = dict(zip(ENGINES, COLORS, strict=True))
    width, handles = 0.84 / max(len(names), 1), {}
    for index, name in enumerate(names):
        at = [place for place, work in enumerate(works) if name in results[work]["engines"]]
        heights = [_times(results[works[place]]["engines"], name) for place in at]
        places = [place + (index - (len(names) - 1) / 2) * width for place in at]
        handles[name] = axes.bar(places, heights, width, color=colors[name])
        if index == 0:
            axes.bar_label(handles[name], [f"{height:.1f}" for height in heights], fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(works)), [work.replace(" after", "\nafter") for work in works], fontsize=8)
    return handles


def _times(engines: Mapping[str, Any], name: str) -> float:
    return float(engines[name]["median"] / engines[THEIRS]["median"])
