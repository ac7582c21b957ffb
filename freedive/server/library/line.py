"""Long work in threads, one piece at a time, which can be given up at any moment."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

SAMPLE_S = 0.5
NUM_SAMPLES = 20
"""The speed of work is the average over the last ten seconds."""


class Abandoned(Exception):
    """Nobody wants the work any more; it ends, and keeps what a later attempt can use."""


@dataclass
class Progress:
    """Bytes of work: ``total`` (0 if unknown) and ``completed``. ``wanted`` until it is given up."""

    total: int = 0
    completed: int = 0
    wanted: bool = True
    begun: bool = False
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=NUM_SAMPLES), repr=False)

    def advance(self, count: int) -> None:
        """Adds ``count`` bytes to ``completed``."""
        self.completed += count
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, self.completed))  # the first one has what an earlier attempt had completed

    def check(self) -> None:
        """Raises Abandoned if the work was given up."""
        if not self.wanted:
            raise Abandoned

    @property
    def bytes_per_s(self) -> float:
        """The speed now; 0 if it is not known yet."""
        if len(self._samples) < 2:
            return 0.0
        (begun, before), (now, after) = self._samples[0], self._samples[-1]
        return max(0.0, (after - before) / (now - begun))


class Line:
    """Work that waits in line: one piece runs at a time, in a daemon thread. Belongs to one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._turn = asyncio.Lock()

    async def run(
        self,
        work: Callable[[], T],
        progress: Progress,
        done: Callable[[T], None],
        unless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs ``work`` in its turn and passes its result to ``done``; skips it if ``unless`` holds then.

        Raises the errors of the work. If the task is cancelled, the work is given up, and the next begins after its
        end.
        """
        await self._turn.acquire()
        if unless():
            return self._turn.release()
        try:
            working = _in_background(work, self._name)
        except BaseException:  # no thread can be started
            self._turn.release()
            raise
        progress.begun = True

        def end(ended: asyncio.Future[T]) -> None:
            self._turn.release()
            if not (ended.cancelled() or ended.exception()):
                done(ended.result())

        working.add_done_callback(end)
        try:
            await asyncio.shield(working)
        finally:
            progress.wanted = False


def _in_background(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Returns the future result of ``work``, which runs in a daemon thread, so that the process can end at any time."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(future)
