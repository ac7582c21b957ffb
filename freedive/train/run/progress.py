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
"""What is to be known of a step, ready for JSON."""


class Steps(Protocol):
    """Work that goes step by step, ``step`` of ``num_steps`` being done."""

    step: int

    @property
    def num_steps(self) -> int: ...

    @property
    def save_every(self) -> int: ...

    def advance(self) -> Row:
        """One step more."""

    def save(self) -> Path:
        """Write a checkpoint of now."""

    def news(self, row: Row) -> str:
        """A few words on a step."""


def go_through(work: Steps, title: str, metrics: Path) -> None:
    """To the last step, with a bar, a line of ``metrics`` (JSONL) for each and checkpoints.

    On a signal to end it saves, and raises UserError.
    """
    keep_rows(metrics, work.step)
    with (
        step_bar(title, work.num_steps, work.step) as show,
        metrics.open("a", encoding="utf-8") as file,
        until_told() as told,
    ):
        while work.step < work.num_steps and not told:
            row = work.advance()
            file.write(json.dumps(row) + "\n")
            file.flush()
            show(work.step, work.news(row))
            if work.step % work.save_every == 0 or work.step == work.num_steps or told:
                work.save()
    if told:
        raise UserError(f"Stopped after step {work.step}, which is saved", "Run the same command to go on")


@contextmanager
def step_bar(title: str, steps: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """A bar on standard error with the time left; it is told the steps done, and what to show of the last."""
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
def until_told() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or SIGINT comes."""
    told: list[int] = []
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, _: told.append(got)) for number in wanted}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_rows(path: Path) -> list[Row]:
    """What a JSONL file holds; a last line that was cut short is left out."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def keep_rows(path: Path, step: int) -> None:
    """Forget the rows after ``step``; stopped meanwhile, all are still there."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    kept = path.with_suffix(".partial")
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    kept.replace(path)
