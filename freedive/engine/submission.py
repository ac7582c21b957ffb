"""A submission is a group of requests that form one entry of the queue and start one after the other."""

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
    """The owner of a request: the ``tenant`` (the owner of a key), one of its users, and a salt of the prefix cache.

    Requests share cached prefixes only if they have the same ``cache_salt``; otherwise the time to the first token
    would reveal other prompts. Each ``tenant`` gets an equal share of the service, and each of its users an equal part
    of that share. Salts and users belong to a tenant: two tenants never share a prefix.
    """

    tenant: str = ""
    user: str = ""
    cache_salt: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


UNSCOPED = Scope()
"""The scope of requests that have no tenant, such as those of the Python API."""


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
    """A group of jobs and their generations; it creates the :class:`Sequence` of a job only when it is needed.

    Only the next job waits in the scheduler's queue. When its sequence starts, the sequence of the following job is
    created and queued. So a group of thousands of jobs needs little memory, and a later request waits behind one job of
    the group, not behind all. ``sequences`` are those that were created and have not ended. After it was submitted,
    only the engine thread may use it.
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
        self._first = make(*jobs[0])  # in the caller's thread, so that the caller gets its exception

    @property
    def is_queued(self) -> bool:
        """Whether a sequence of this submission will queue the next one when it starts."""
        return any(sequence.successor for sequence in self.sequences.values())

    def drop(self, generation: Generation) -> None:
        """Removes a job that has no sequence yet."""
        self._dropped.add(generation)

    def next(self) -> Sequence | None:
        """Returns the sequence of the next job, or None. A job whose sequence cannot be created ends with an error."""
        while self._jobs:
            generation, job = self._jobs.popleft()
            if generation in self._dropped:
                continue
            try:
                sequence = self._first if self._first.generation is generation else self._make(generation, job)
            except BaseException as error:  # native code can raise exceptions that do not derive from Exception
                log.exception("request %s could not be made", generation.id)
                self._end(generation, EngineError(f"The answer cannot begin: {error}"))
                continue
            sequence.successor = self.next if self._jobs else None
            self.sequences[generation] = sequence
            return sequence
        return None
