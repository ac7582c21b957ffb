"""Collects the log-probabilities of a prompt's tokens while the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence

from freedive.arrays import Floats
from freedive.engine.generation import TokenLogprobs
from freedive.engine.sampler import logprobs

MAX_SCORED_ROWS = 128
"""Maximum number of prompt rows per step whose logits are computed: 77 MB for a vocabulary of 150,000 tokens."""


class PromptLogprobs:
    """Log-probabilities of each token of ``prompt``, and of the ``num_top`` likeliest tokens at its position.

    It does not store the logits.
    """

    def __init__(self, prompt: Sequence[int], num_top: int) -> None:
        self._prompt = prompt
        self._num_top = num_top
        self._entries = [TokenLogprobs(prompt[0], None, ())]
        self._is_popped = False

    @property
    def complete(self) -> bool:
        """Whether all tokens of the prompt have log-probabilities."""
        return len(self._entries) == len(self._prompt)

    def add(self, start: int, logits: Sequence[Floats]) -> None:
        """Adds the ``logits`` of the rows from position ``start`` on; ignores rows that were added before."""
        for place, row in enumerate(logits, start + 1):
            if place == len(self._entries) < len(self._prompt):
                self._entries.append(logprobs(row, self._prompt[place], self._num_top))

    def pop(self) -> Sequence[TokenLogprobs]:
        """Returns all log-probabilities on the first call, and nothing on later calls."""
        entries, self._is_popped = () if self._is_popped else self._entries, True
        return entries
