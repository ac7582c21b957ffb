"""What the server did in the last minutes, for the page of statistics: a sample every two seconds."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import statistics
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from freedive import machine
from freedive.json_object import Json
from freedive.server.models import Models
from freedive.server.request_record import CLIENT_LEFT, RequestRecord
from freedive.server.routing import APIRouter
from freedive.server.stats import NUM_REMEMBERED
from freedive.server.tasks import running

log = logging.getLogger(__name__)

EVERY_S = 2.0
"""Seconds between two samples."""

NUM_SAMPLES = 300
"""Samples that are kept: those of ten minutes."""


class History:
    """An observer that counts errors and collects times, and the samples of :data:`NUM_SAMPLES` moments.

    A sample has counters since the start of the server and its models, so that a reader forms differences.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._started_at = time.time()
        self._samples: deque[Json] = deque(maxlen=NUM_SAMPLES)
        self._counts = Counter(failed=0, refused=0)
        self._first_tokens: deque[float] = deque(maxlen=NUM_REMEMBERED)
        self._num_taken = 0

    def __call__(self, record: RequestRecord) -> None:
        """Counts a finished request that failed or was refused, and remembers when its first token came."""
        if record.failed:
            self._counts["failed"] += 1
        elif 400 <= record.status < 500 and record.status != CLIENT_LEFT:
            self._counts["refused"] += 1
        if record.completions and record.completions.timings.first_token_at is not None:
            self._first_tokens.append(record.completions.timings.first_token_s)

    def take(self) -> None:
        """Takes a sample; its time to the first token is the median of the requests that ended since the last one."""
        self._num_taken += 1
        sample = {
            "number": self._num_taken,
            "at_s": time.monotonic(),
            "resident_bytes": machine.resident_memory(),
            "first_token_s": statistics.median(self._first_tokens) if self._first_tokens else None,
            **self._counts,
            "models": {model.name: dataclasses.asdict(model.engine.stats()) for model in self._models.loaded},
        }
        self._first_tokens.clear()
        self._samples.append(sample)

    def after(self, number: int) -> Json:
        """Returns the samples after the one with this number; ``started_at`` tells another server's numbers apart."""
        samples = [sample for sample in self._samples if sample["number"] > number]
        return {
            "started_at": self._started_at,
            "every_s": EVERY_S,
            "num_samples": NUM_SAMPLES,
            "total_bytes": machine.total_memory(),
            "available_bytes": machine.available_memory(),
            "troubles": self._models.troubles,
            "samples": samples,
        }

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Takes samples while the block runs."""
        async with running(self._take_all()):
            yield

    async def _take_all(self) -> None:
        while True:
            try:
                self.take()
            except Exception:  # such as too many open files: the next sample may succeed
                log.exception("a sample of the server's figures")
            await asyncio.sleep(EVERY_S)


def router(history: History) -> APIRouter:
    """Returns the page's private route of samples."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/app/stats")
    async def samples(request: Request, after: int = 0) -> Json:
        request.state.record.key.require("manage")
        return history.after(after)

    return routes
