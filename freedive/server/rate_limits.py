"""Limits of each key: concurrent requests, and requests per minute."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from freedive.errors import Overloaded
from freedive.server.keys import Key

WINDOW_S = 60.0


class RateLimited(Overloaded):
    """A key has reached its limit; ``retry_after_s`` is the time until it may send again, in whole seconds."""

    code = "rate_limit_exceeded"

    def __init__(self, what: str, retry_after_s: int) -> None:
        super().__init__(what, f"Try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class RateLimits:
    """Counts the requests of each key. Belongs to one event loop; ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        self._running: Counter[str] = Counter()

    @contextmanager
    def track(self, key: Key) -> Iterator[None]:
        """Counts one request of ``key`` as running while the block runs. Raises RateLimited without counting it."""
        if key.max_running is not None and self._running[key.id] >= key.max_running:
            raise RateLimited(f"This key has {key.max_running} running requests, which is its limit", 1)
        if key.requests_per_minute is not None:
            self._count(key.id, key.requests_per_minute)
        self._running[key.id] += 1
        try:
            yield
        finally:
            self._running[key.id] -= 1

    def _count(self, id: str, limit: int) -> None:
        recent, now = self._recent[id], self._clock()
        while recent and recent[0] <= now - WINDOW_S:
            recent.popleft()
        if len(recent) >= limit:
            wait_s = math.ceil(recent[-limit] + WINDOW_S - now)
            raise RateLimited(f"This key has sent {limit} requests within a minute, which is its limit", wait_s)
        recent.append(now)
