"""Progress bars, metrics files and signal handling of long training loops."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from freedive.errors import UserError

Row = dict[str, Any]
"""The metrics of a step, ready for JSON."""


class Steps(Protocol):
    """A training loop that ``advance`` moves one step on; ``step`` of ``num_steps`` are done."""

    step: int

    @property
    def num_steps(self) -> int: ...

    @property
    def save_every(self) -> int: ...

    def advance(self) -> Row:
        """Makes one step and returns its metrics."""

    def save(self) -> Path:
        """Writes a checkpoint of the current step."""

    def news(self, row: Row) -> str:
        """Returns a summary of a step for the progress bar."""


def run_steps(work: Steps, title: str, metrics: Path) -> None:
    """Runs ``work`` to its last step, with a progress bar, checkpoints, and one line of ``metrics`` (JSONL) per step.

    After SIGTERM or SIGINT it saves a checkpoint and raises UserError.
    """
    keep_rows(metrics, work.step)
    with (
        step_bar(title, work.num_steps, work.step) as show,
        metrics.open("a", encoding="utf-8") as file,
        stop_signals() as signals,
    ):
        while work.step < work.num_steps and not signals:
            row = work.advance()
            file.write(json.dumps(row) + "\n")
            file.flush()
            show(work.step, work.news(row))
            if work.step % work.save_every == 0 or work.step == work.num_steps or signals:
                work.save()
    if signals:
        raise UserError(f"Stopped after step {work.step}, which is saved", "Run the same command to go on")


@contextmanager
def step_bar(title: str, steps: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """Shows a progress bar with the remaining time on standard error; yields a function of the step and its summary."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, completed=done, news="")
        yield lambda step, news: bar.update(task, completed=step, news=news)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that receives SIGTERM and SIGINT instead of the default handlers."""
    signals: list[int] = []
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in wanted}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a JSONL file, without a last line that is incomplete."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def keep_rows(path: Path, step: int) -> None:
    """Removes the rows after ``step`` from a metrics file, atomically."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    kept = path.with_suffix(".partial")
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    kept.replace(path)
