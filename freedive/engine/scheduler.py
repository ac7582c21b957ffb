"""Who takes part in the next step.

First come, first served. The running requests are always the oldest ones, in order of arrival; the waiting follow.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain

import numpy as np

from freedive.engine.batch import Batch
from freedive.engine.kvcache import PageTables, pages_for
from freedive.engine.request import Generation, Sampling
from freedive.engine.sampler import Sampler
from freedive.engine.stop import TextStream


@dataclass(slots=True, eq=False)
class Request:
    """A request inside the engine. ``tokens`` are prompt and answer so far, the first ``num_cached`` of them cached.

    It ends with one of ``stop_ids`` or, at the latest, with ``max_length`` tokens. ``row`` is its row of the page
    table, -1 while it waits.
    """

    generation: Generation
    sampling: Sampling
    sampler: Sampler
    text: TextStream
    tokens: list[int]
    max_length: int
    stop_ids: frozenset[int]
    num_cached: int = 0
    row: int = -1

    @property
    def num_pending(self) -> int:
        """Tokens still to be computed: 1 when decoding."""
        return len(self.tokens) - self.num_cached


Plan = list[tuple[Request, int]]
"""Requests of one step, each with the number of its pending tokens to compute."""


class Scheduler:
    """Shares out the steps and the pages. Each request must fit the whole cache."""

    def __init__(self, pages: PageTables, max_batch: int, prefill_chunk: int) -> None:
        self.pages = pages
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._prefill_chunk = prefill_chunk
        self._free_rows = list(range(max_batch))

    def add(self, request: Request) -> None:
        """Queue a new request behind all others."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it stands, and free its pages."""
        if request.row < 0:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
            self._release(request)

    def plan(self) -> Plan:
        """The next step: one token of each decoding request, and prompts in order within the prefill budget."""
        self._grow()
        self._admit()
        plan: Plan = []
        budget = self._prefill_chunk
        for request in self.running:
            count = request.num_pending
            if count > 1:
                count = min(count, budget)
                budget -= count
            if count:
                plan.append((request, count))
        return plan

    def _grow(self) -> None:
        """Give every running request, oldest first, room for its newest token, at the expense of the youngest."""
        for request in tuple(self.running):
            while request.row >= 0 and not self.pages.reserve(request.row, len(request.tokens)):
                self._preempt(self.running.pop())

    def _preempt(self, request: Request) -> None:
        """Back to the head of the queue; later its prompt and answer so far are computed anew."""
        self._release(request)
        self.waiting.appendleft(request)
        request.generation.timings.num_preemptions += 1

    def _admit(self) -> None:
        """Start waiting requests while there is room for all their tokens, and a page in hand for each one running."""
        while self.waiting and self._free_rows:
            request = self.waiting[0]
            if pages_for(len(request.tokens)) + len(self.running) > self.pages.num_free:
                return
            request.row = self._free_rows.pop()
            self.pages.reserve(request.row, len(request.tokens))
            self.running.append(self.waiting.popleft())

    def _release(self, request: Request) -> None:
        self.pages.release(request.row)
        self._free_rows.append(request.row)
        request.row, request.num_cached = -1, 0


def to_batch(plan: Plan, pages: PageTables) -> Batch:
    """The data of a planned step. Logits are wanted of each request that has no tokens pending afterwards."""
    requests = [request for request, _ in plan]
    starts = [request.num_cached for request in requests]
    ends = [request.num_cached + count for request, count in plan]
    tokens = chain.from_iterable(r.tokens[start:end] for r, start, end in zip(requests, starts, ends, strict=True))
    lengths = np.array([count for _, count in plan], np.int32)
    complete = [end == len(request.tokens) for request, end in zip(requests, ends, strict=True)]
    return Batch(
        tokens=np.array(list(tokens), np.int32),
        lengths=lengths,
        starts=np.array(starts, np.int32),
        pages=pages.table[[request.row for request in requests], : pages_for(max(ends))],
        wanted=(lengths.cumsum(dtype=np.int32) - 1)[complete],
        prompts=np.array([request.generation.num_prompt_tokens for request in requests], np.int32),
    )
