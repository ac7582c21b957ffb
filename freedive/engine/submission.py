"""Requests submitted together: one entry of the queue, whose sequences start one after the other."""

from __future__ import annotations

import logging
from collections import abc, deque
from collections.abc import Callable
from dataclasses import dataclass

from freedive.engine.generation import Delivery, EngineError, Generation
from freedive.engine.pooling import Pooling
from freedive.engine.sampling import Sampling
from freedive.engine.sequence import Sequence
from freedive.field_types import check_fields
from freedive.text.prompt import Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scope:
    """On whose behalf a request is: the ``tenant`` (the holder of a key), one of its users, and a salt of the cache.

    Requests share cached prefixes only if they have the same ``cache_salt``: otherwise the time to the first token
    would reveal other prompts. Each ``tenant`` gets an equal share of the steps, and each of its users an equal part of
    that share. Salts and users belong to a tenant: two tenants never share a prefix.
    """

    tenant: str = ""
    user: str = ""
    cache_salt: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


UNSCOPED = Scope()
"""Of requests of the process itself."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request to the engine, as :meth:`freedive.engine.engine.Engine.submit` takes it.

    The parser and the constraint of ``prompt`` are made on the engine thread when the request starts.
    """

    prompt: Prompt
    sampling: Sampling
    scope: Scope = UNSCOPED
    pooling: Pooling | None = None


class Submission:
    """Jobs with their generations, of which few have a :class:`Sequence` at any time.

    Only the next job waits in the scheduler's queue. The one behind it gets its request, with all that costs memory,
    when that one starts. So a batch of thousands costs little, and what arrives later is behind one request of it, not
    behind all. ``sequences`` are those that were made and have not ended. Belongs to the engine thread once submitted.
    """

    def __init__(
        self,
        jobs: abc.Sequence[tuple[Generation, Job]],
        make: Callable[[Generation, Job], Sequence],
        end: Callable[[Generation, Delivery], None],
    ) -> None:
        self.sequences: dict[Generation, Sequence] = {}
        self.tenant = jobs[0][1].scope.tenant
        self.num_open = len(jobs)
        self._jobs = deque(jobs)
        self._dropped: set[Generation] = set()
        self._make = make
        self._end = end
        self._first = make(*jobs[0])  # in the thread of who submits, who learns of faults at once

    @property
    def is_queued(self) -> bool:
        """Whether one of the requests will bring the next when it starts."""
        return any(sequence.successor for sequence in self.sequences.values())

    def drop(self, generation: Generation) -> None:
        """Leave out a job that has no request yet."""
        self._dropped.add(generation)

    def next(self) -> Sequence | None:
        """The request of the next job. One that cannot be made ends its generation with an error."""
        while self._jobs:
            generation, job = self._jobs.popleft()
            if generation in self._dropped:
                continue
            try:
                sequence = self._first if self._first.generation is generation else self._make(generation, job)
            except BaseException as error:  # native code raises other things than exceptions
                log.exception("request %s could not be made", generation.id)
                self._end(generation, EngineError(f"The answer cannot begin: {error}"))
                continue
            sequence.successor = self.next if self._jobs else None
            self.sequences[generation] = sequence
            return sequence
        return None
