"""Detects answers that repeat themselves endlessly."""

from __future__ import annotations

NGRAM = 8
"""Length in tokens of the n-gram whose last occurrence gives the candidate period of a loop."""

MIN_REPEATED = 256
"""Minimum number of consecutive repeated tokens of a loop."""

MIN_ROUNDS = 3
"""Minimum number of repetitions of the period of a loop."""


class RepetitionDetector:
    """Reads one answer token by token, at constant cost, and detects a loop.

    The candidate period is the distance to the previous occurrence of the last n-gram. It stays while each new token
    equals the token one period before it. Lists, tables and code repeat parts too, but seldom hundreds of tokens
    without a change.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[int, int] = {}  # hash of an n-gram -> number of tokens up to its last occurrence
        self._period = 0
        self._num_repeated = 0

    def add(self, token: int) -> bool:
        """Adds ``token`` to the answer and returns whether the answer is in a loop."""
        self._tokens.append(token)
        count = len(self._tokens)
        ngram = hash(tuple(self._tokens[-NGRAM:]))
        before = self._places.get(ngram, count)
        if self._period and token == self._tokens[-1 - self._period]:
            self._num_repeated += 1
        else:
            self._period, self._num_repeated = count - before, 0
        if count >= NGRAM:
            self._places[ngram] = count
        return self._period > 0 and self._num_repeated >= max(MIN_REPEATED, MIN_ROUNDS * self._period)
