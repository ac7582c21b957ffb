"""What a reader sees who watches an answer: each token with the tokens that were likely, and the experts behind it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from freedive.arrays import Ints

MAX_TOKENS = 512
"""Tokens that wait for one reader; older ones are dropped."""

NUM_TOP = 5
"""Likeliest tokens of each position."""


@dataclass(frozen=True, slots=True)
class WatchedToken:
    """Token number ``index`` of an answer, and the row of the step that it was chosen from.

    ``top`` are the likeliest tokens as (id, logprob), best first, before penalties and constraints. ``experts`` int32
    [layers, num_chosen] are the experts that computed the row, -1 where a layer chooses fewer; a dense model has no
    layers of them. ``missed`` are for each of these layers the experts that the step read from disk, for any of its
    requests; empty if all are in memory.
    """

    index: int
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    experts: Ints
    missed: Sequence[Sequence[int]]


Watch = deque[WatchedToken]
"""The newest tokens for one reader, who takes them from the left, in any thread."""


class Watches:
    """The readers who watch one generation. The engine looks at it before it computes anything for them."""

    def __init__(self) -> None:
        self._open: tuple[Watch, ...] = ()  # replaced, never changed, because the engine thread iterates over it
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._open)

    @contextmanager
    def open(self) -> Iterator[Watch]:
        """Watches while the block runs."""
        watch = Watch(maxlen=MAX_TOKENS)
        with self._lock:
            self._open = (*self._open, watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._open = tuple(each for each in self._open if each is not watch)

    def add(self, token: WatchedToken) -> None:
        """Passes a token to every reader. Only the engine thread calls it."""
        for watch in self._open:
            watch.append(token)
