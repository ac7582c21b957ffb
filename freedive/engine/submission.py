"""Requests submitted together: they are one entry of the queue, and enter the scheduler one after the other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from freedive.engine.guide import Guide
from freedive.engine.pooling import Pooling
from freedive.engine.request import Delivery, EngineError, Generation, Sampling
from freedive.engine.scheduler import Request
from freedive.engine.stop import Reader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One request to the engine: what :meth:`freedive.engine.engine.Engine.submit` takes.

    ``reader`` and ``guide`` make what the answer is read and guided by, on the engine thread, when the request starts.
    """

    prompt: Sequence[int]
    sampling: Sampling
    id: str | None = None
    continues: bool = False
    keep: Callable[[str], bool] | None = None
    reader: Callable[[], Reader] | None = None
    guide: Callable[[], Guide | None] | None = None
    pooling: Pooling | None = None
    salt: str = ""
    user: str = ""
    tenant: str = ""


class Submission:
    """Jobs with their generations, of which few have a :class:`Request` at any time.

    Only the next job waits in the scheduler's queue. The one behind it gets its request, with all that costs memory,
    when that one starts. So a batch of thousands costs little, and what arrives later is behind one request of it, not
    behind all. ``requests`` are those that were made and have not ended. Belongs to the engine thread once submitted.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[Generation, Job]],
        make: Callable[[Generation, Job], Request],
        end: Callable[[Generation, Delivery], None],
    ) -> None:
        self.requests: dict[Generation, Request] = {}
        self.tenant = jobs[0][1].tenant
        self.num_open = len(jobs)
        self._jobs = deque(jobs)
        self._dropped: set[Generation] = set()
        self._make = make
        self._end = end
        self._first = make(*jobs[0])  # in the thread of who submits, who learns of faults at once

    @property
    def is_queued(self) -> bool:
        """Whether one of the requests will bring the next when it starts."""
        return any(request.successor for request in self.requests.values())

    def drop(self, generation: Generation) -> None:
        """Leave out a job that has no request yet."""
        self._dropped.add(generation)

    def next(self) -> Request | None:
        """The request of the next job. One that cannot be made ends its generation with an error."""
        while self._jobs:
            generation, job = self._jobs.popleft()
            if generation in self._dropped:
                continue
            try:
                request = self._first if self._first.generation is generation else self._make(generation, job)
            except BaseException as error:  # native code raises other things than exceptions
                log.exception("request %s could not be made", generation.id)
                self._end(generation, EngineError(f"The answer cannot begin: {error}"))
                continue
            request.successor = self.next if self._jobs else None
            self.requests[generation] = request
            return request
        return None
