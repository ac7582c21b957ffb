"""Speculative decoding: cheap drafters propose tokens, which are verified as further rows of a step.

The logits of a row do not depend on other rows, and a random draw depends only on the seed and the position. So the
token sampled from a row is the token that plain decoding would sample. If it equals the draft token, the next row is
valid too. Speculation changes the speed, never the tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np

NGRAM_SIZES = {2: 0.4, 4: 0.6, 8: 0.8}
"""Lengths of the n-grams to look up, with the initial acceptance probability of each (typical of English and code)."""

EMA_WEIGHT = 1 / 8
"""Weight of the newest value in an exponential moving average."""

MAX_AGE_STEPS = 500
"""Number of steps after which an average that was not updated is dropped."""

PROBE_INTERVAL = 32
"""Every ``PROBE_INTERVAL``-th choice is not the best one, to measure its duration."""


class Draft(NamedTuple):
    """Draft tokens, each with the probability that it and all tokens before it are accepted."""

    tokens: list[int]
    accept_probs: list[float]


class Drafter(ABC):
    """Drafts the next tokens of one sequence.

    ``accept_probs`` are the initial acceptance probabilities of each kind of draft token. They are updated from every
    draft token, whether the model checked it or not, by comparison with the token that was sampled.
    """

    def __init__(self, accept_probs: Mapping[int, float]) -> None:
        self._accept_probs = dict(accept_probs)
        self._start = 0
        self._guesses: list[tuple[int, int]] = []  # tokens from _start on, each with its kind

    def draft(self, tokens: Sequence[int], max_tokens: int) -> Draft:
        """Returns at most ``max_tokens`` draft tokens that may follow ``tokens``, the prompt and the answer so far.

        ``tokens`` must extend the tokens of the previous call.
        """
        self._learn(tokens)
        self._start, self._guesses = len(tokens), self.guess(tokens, max_tokens)
        accept_probs = accumulate((self._accept_probs[kind] for _, kind in self._guesses), mul)
        return Draft([token for token, _ in self._guesses], list(accept_probs))

    def _learn(self, tokens: Sequence[int]) -> None:
        for (guess, kind), token in zip(self._guesses, tokens[self._start :], strict=False):
            self._accept_probs[kind] += ((guess == token) - self._accept_probs[kind]) * EMA_WEIGHT
            if guess != token:
                return

    @abstractmethod
    def guess(self, tokens: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
        """Returns at most ``max_tokens`` draft tokens as (token, kind)."""


class MtpDrafter(Drafter):
    """Drafts the token that the model's own MTP layer predicted (DeepSeek-V3, section 2.2)."""

    def __init__(self) -> None:
        super().__init__({0: 0.7})
        self._predicted: dict[int, int] = {}

    def predict(self, place: int, token: int) -> None:
        """Predicts ``token`` at position ``place`` of the sequence."""
        self._predicted = {place: token}

    def guess(self, tokens: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
        """Implements :meth:`Drafter.guess`."""
        return [(self._predicted[len(tokens)], 0)][:max_tokens] if len(tokens) in self._predicted else []


class PromptLookup(Drafter):
    """Drafts the tokens that followed the last occurrence of the newest n-gram (prompt lookup decoding, Saxena 2023).

    The longest known n-gram is used. The kind of a draft token is the length of the n-gram before it, which grows with
    every draft token.
    """

    def __init__(self) -> None:
        super().__init__(NGRAM_SIZES)
        self._places: dict[int, int] = {}  # hash of an n-gram -> position of the token after its last occurrence
        self._num_indexed = 0

    def guess(self, tokens: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
        """Implements :meth:`Drafter.guess`."""
        self._index(tokens)
        for size in reversed(NGRAM_SIZES):
            if place := self._places.get(hash(tuple(tokens[-size:]))):
                period = len(tokens) - place  # a draft that reaches the end of the tokens continues periodically
                return [
                    (tokens[place + i % period], max(n for n in NGRAM_SIZES if n <= size + i))
                    for i in range(max_tokens)
                ]
        return []

    def _index(self, tokens: Sequence[int]) -> None:
        for size in NGRAM_SIZES:
            for end in range(max(self._num_indexed, size), len(tokens)):
                self._places[hash(tuple(tokens[end - size : end]))] = end
        self._num_indexed = len(tokens)


class DraftBudget:
    """Decides how many draft tokens a step verifies: the number with the most expected tokens per second.

    The duration of a step is a moving average for each number of rows, with linear interpolation between them. Beyond
    the largest measured number of rows the duration counts as constant, and at most twice as many rows are tried. An
    average that was not updated for ``MAX_AGE_STEPS`` is dropped, so that larger steps are tried again. Sometimes a
    step verifies one draft token more than the best number, or none, so that these durations stay known.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._renewed: dict[int, int] = {}  # number of rows -> step of the last measurement
        self._num_steps = self._num_choices = 0

    def record(self, num_rows: int, seconds: float) -> None:
        """Records that a step in which every sequence decodes, with ``num_rows`` rows, took ``seconds``."""
        self._num_steps += 1
        average = self._seconds.setdefault(num_rows, seconds)
        self._seconds[num_rows] += (seconds - average) * EMA_WEIGHT
        self._renewed[num_rows] = self._num_steps
        for old in [rows for rows, step in self._renewed.items() if self._num_steps - step > MAX_AGE_STEPS]:
            del self._seconds[old], self._renewed[old]

    def choose(self, accept_probs: Sequence[Sequence[float]]) -> list[int]:
        """Returns the number of draft tokens to verify of each sequence, given the ``accept_probs`` of its draft."""
        room = max(2 * max(self._seconds, default=0) - len(accept_probs), 0)
        ranked = sorted(
            ((chance, index) for index, chances in enumerate(accept_probs) for chance in chances), reverse=True
        )
        chosen = self._num_worth(len(accept_probs), [chance for chance, _ in ranked[:room]])
        counts = Counter(index for _, index in ranked[:chosen])
        return [counts[index] for index in range(len(accept_probs))]

    def _num_worth(self, num_requests: int, chances: Sequence[float]) -> int:
        if not chances:
            return 0
        tokens = np.cumsum([num_requests, *chances])
        rows, averages = zip(*sorted(self._seconds.items()), strict=True)
        seconds = np.interp(num_requests + np.arange(len(tokens)), rows, averages)
        best = int((tokens / seconds).argmax())
        self._num_choices += 1
        if self._num_choices % PROBE_INTERVAL:
            return best
        return min(best + 1, len(chances)) if self._num_choices % (2 * PROBE_INTERVAL) else 0
