"""Measures the time of each operation of a step, and shows it as a table or a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from freedive.engine.kvcache import pages_for
from freedive.errors import UserError
from freedive.model.batch import PAGE_TOKENS, Batch, StateUpdates
from freedive.native import _native
from freedive.ops.native import NativeRunner
from freedive.ops.paging import ExpertTraffic
from freedive.ops.trace import Operation

BANDWIDTH_MEGABYTES = 512
"""Megabytes that are read to measure memory bandwidth; more than the caches hold."""

MOST_NAME_COLUMNS = 24
"""Columns of an operation's name in a table: longer names go on in the next line, so that figures are never cut."""


def bandwidth(threads: int) -> float:
    """Returns the memory bandwidth in GB/s of ``threads`` that read together."""
    return _native.read_bandwidth(threads, BANDWIDTH_MEGABYTES)


@dataclass(frozen=True)
class Answers:
    """A workload: ``count`` answers at once to random prompts of ``prompt`` tokens, with ``gen`` random tokens each."""

    count: int
    prompt: int
    gen: int

    @property
    def num_pages(self) -> int:
        return self.count * pages_for(self.prompt + self.gen)

    def batch(self, start: int, length: int, tokens: np.random.Generator, vocab_size: int) -> Batch:
        """Returns the batch of positions ``start`` to ``start + length`` of every answer."""
        lengths = np.full(self.count, length, np.int32)
        starts = np.full(self.count, start, np.int32)
        complete = start + length >= self.prompt
        return Batch(
            tokens=tokens.integers(0, vocab_size, lengths.sum(), np.int32),
            lengths=lengths,
            starts=starts,
            pages=np.arange(self.num_pages, dtype=np.int32).reshape(self.count, -1),
            output_rows=lengths.cumsum(dtype=np.int32) - 1 if complete else np.empty(0, np.int32),
            prompts=np.full(self.count, self.prompt, np.int32),
            states=StateUpdates.plain(np.arange(self.count, dtype=np.int32), starts, lengths),
        )

    def read(self, runner: NativeRunner) -> list[Operation]:
        """Runs the prompts in steps of at most ``max_rows`` rows; returns their operations."""
        chunk = min(self.prompt, runner.max_rows // self.count)
        starts = range(0, self.prompt, chunk)
        return list(chain.from_iterable(self._trace(runner, at, min(chunk, self.prompt - at)) for at in starts))

    def write(self, runner: NativeRunner) -> list[list[Operation]]:
        """Runs a step for each generated token; returns the operations of each."""
        return [self._trace(runner, self.prompt + step, 1) for step in range(self.gen)]

    def _trace(self, runner: NativeRunner, start: int, length: int) -> list[Operation]:
        return runner.trace(self.batch(start, length, np.random.default_rng(start), runner.vocab_size))[1]


@dataclass(frozen=True)
class OperationSummary:
    """Operations of one kind in a step: their number, seconds, bytes read and multiply-adds.

    If their experts stay on disk, they waited ``stalled_s`` of the seconds for it, and ``hit_rates`` are the shares of
    needed experts that were in memory, by layer.
    """

    kind: str
    count: float
    seconds: float
    bytes: float
    macs: float
    stalled_s: float = 0.0
    hit_rates: Mapping[int, float] = field(default_factory=dict)

    @property
    def gb_per_s(self) -> float:
        return self.bytes / self.seconds / 1e9

    @property
    def tops(self) -> float:
        """The speed in 10^12 multiplications and additions per second."""
        return 2 * self.macs / self.seconds / 1e12


def average(steps: Sequence[Sequence[Operation]]) -> list[OperationSummary]:
    """Averages the operations of each kind over the faster half of the steps; the slower half was disturbed."""
    quiet = sorted(steps, key=lambda step: sum(each.seconds for each in step))[: (len(steps) + 1) // 2]
    kinds: dict[str, list[Operation]] = {}
    for each in chain.from_iterable(quiet):
        kinds.setdefault(each.kind, []).append(each)
    return [_summary(kind, operations, len(quiet)) for kind, operations in kinds.items()]


def total(summaries: Sequence[OperationSummary]) -> OperationSummary:
    """Sums the operations of a step."""
    parts = [(each.count, each.seconds, each.bytes, each.macs, each.stalled_s) for each in summaries]
    return OperationSummary("step", *(sum(column) for column in zip(*parts, strict=True)))


def _summary(kind: str, operations: Sequence[Operation], steps: int) -> OperationSummary:
    parts = [(1, each.seconds, each.work.bytes, each.work.macs, _stalled_s(each)) for each in operations]
    sums = OperationSummary(kind, *(sum(column) / steps for column in zip(*parts, strict=True)))
    return replace(sums, hit_rates=_hit_rates(operations))


def _stalled_s(operation: Operation) -> float:
    return operation.traffic.stalled_s if operation.traffic else 0.0


def _hit_rates(operations: Sequence[Operation]) -> dict[int, float]:
    layers: dict[int, list[ExpertTraffic]] = {}
    for each in operations:
        if each.traffic and each.layer is not None:
            layers.setdefault(each.layer, []).append(each.traffic)
    return {layer: ExpertTraffic.sum(traffic).hit_rate for layer, traffic in layers.items()}


def measure(runner: NativeRunner, one: Answers, many: Answers, repeats: int) -> dict[str, list[OperationSummary]]:
    """Measures by phase: a prompt, ``repeats`` times; the tokens of its answer; and those of many answers at once.

    Nothing else may use the runner meanwhile. Raises UserError if its cache is too small for the answers.
    """
    for answers in (one, many):
        if answers.num_pages > runner.num_pages:
            what = f"A trace needs {answers.num_pages * PAGE_TOKENS} tokens of cache"
            raise UserError(f"{what}, but there are {runner.num_pages * PAGE_TOKENS}", "Raise cache_tokens")
    reads = [one.read(runner) for _ in range(repeats + 1)][1:]
    writes = one.write(runner)
    many.read(runner)
    return {
        f"reading {one.prompt} tokens": average(reads),
        f"writing a token after {one.prompt}": average(writes),
        f"writing {many.count} answers at once, a token each": average(many.write(runner)),
    }


def as_json(summaries: Sequence[OperationSummary]) -> dict[str, Any]:
    """Returns the step and its operations with their speeds."""
    step, *parts = (
        asdict(summary) | {"gb_per_s": summary.gb_per_s, "tops": summary.tops}
        for summary in (total(summaries), *summaries)
    )
    return step | {"operations": parts}


def print_tables(steps: Mapping[str, Sequence[OperationSummary]], bandwidth: float) -> None:
    """Prints a table for each step, whose bars together span the step. ``bandwidth`` is the machine's, in GB/s."""
    from rich.bar import Bar
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for title, summaries in steps.items():
        step, begin = total(summaries), 0.0
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=0, show_footer=True)
        table.add_column("", step.kind, overflow="fold", max_width=MOST_NAME_COLUMNS)
        columns = ("count", "ms", "share", "", "GB/s", f"of {bandwidth:.0f}", "TOPS")
        for name, footer in zip(columns, (*_times(step, step), "", *_speeds(step, bandwidth)), strict=True):
            table.add_column(name, footer, justify="right", no_wrap=True)
        for summary in summaries:
            bar = Bar(step.seconds, begin, begin + summary.seconds, width=20, color="cyan")
            table.add_row(summary.kind, *_times(summary, step), bar, *_speeds(summary, bandwidth))
            begin += summary.seconds
        console.print(table)
        for summary in summaries:
            if summary.hit_rates:
                rates = ", ".join(f"{layer}: {rate:.0%}" for layer, rate in summary.hit_rates.items())
                console.print(f"{summary.kind} waited {summary.stalled_s * 1e3:.3f} ms of these for the disk")
                console.print(f"and were in memory by layer: {rates}\n")


def _times(summary: OperationSummary, step: OperationSummary) -> tuple[str, ...]:
    return f"{summary.count:g}", f"{summary.seconds * 1e3:.3f}", f"{summary.seconds / step.seconds:.1%}"


def _speeds(summary: OperationSummary, bandwidth: float) -> tuple[str, ...]:
    if not summary.bytes:
        return "", "", ""
    return f"{summary.gb_per_s:.1f}", f"{summary.gb_per_s / bandwidth:.0%}", f"{summary.tops:.3f}"


def draw(title: str, steps: Mapping[str, Sequence[OperationSummary]], file: Path) -> None:
    """Draws the tables as a picture (PNG or SVG). Raises UserError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("A picture needs matplotlib", "Install it: pip install matplotlib") from None

    heights = [len(summaries) + 2 for summaries in steps.values()]
    figure = Figure(figsize=(9, 0.3 * sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title)
    for axes, (name, summaries) in zip(
        figure.subplots(len(steps), height_ratios=heights, squeeze=False).flat, steps.items(), strict=True
    ):
        ends = np.cumsum([summary.seconds for summary in summaries]) * 1e3
        widths = [summary.seconds * 1e3 for summary in summaries]
        bars = axes.barh([summary.kind for summary in summaries], widths, left=ends - widths, color="#3b7dd8")
        axes.bar_label(bars, [_label(summary) for summary in summaries], padding=4, fontsize=8)
        axes.set_xlim(0, 1.35 * ends[-1])  # space for the last label
        axes.invert_yaxis()
        axes.set_title(f"{name}: {ends[-1]:.2f} ms", loc="left", fontsize=10)
    axes.set_xlabel("ms")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _label(summary: OperationSummary) -> str:
    milliseconds = f"{summary.seconds * 1e3:.2f} ms"
    return f"{milliseconds}, {summary.gb_per_s:.1f} GB/s, {summary.tops:.2f} TOPS" if summary.bytes else milliseconds
