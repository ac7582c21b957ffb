"""Detects answers that repeat themselves endlessly."""

from __future__ import annotations

NGRAM = 8
"""Tokens by which a place is recognised that the answer has been at before."""

MIN_REPEATED = 256
"""Fewest tokens that are a repetition of those before them, one after the other, in a loop."""

MIN_ROUNDS = 3
"""Fewest times that the repeated part has come again in a loop."""


class RepetitionDetector:
    """Follows one answer token by token, at constant cost.

    The distance to where the last n-gram stood before is the period that is tried; it is kept as long as each new token
    is the one that stands a period before it. Lists, tables and code repeat parts, too, but not all of hundreds of
    tokens.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[int, int] = {}  # of n-grams, by their hash: how many tokens there were after it
        self._period = 0
        self._num_repeated = 0

    def add(self, token: int) -> bool:
        """Take note that ``token`` has come; whether the answer is in a loop."""
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
