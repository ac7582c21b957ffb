"""Log-probabilities of a prompt's own tokens, collected as the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence

from freedive.arrays import Floats
from freedive.engine.generation import TokenLogprobs
from freedive.engine.sampler import logprobs

MAX_SCORED_ROWS = 128
"""Rows of a step whose logits are wanted for scores: of a vocabulary of 150,000, they take 77 MB."""


class PromptScores:
    """Log-probabilities of the tokens of ``prompt``, and of the ``num_top`` likeliest in the place of each.

    Only numbers are kept, not logits.
    """

    def __init__(self, prompt: Sequence[int], num_top: int) -> None:
        self._prompt = prompt
        self._num_top = num_top
        self._entries = [TokenLogprobs(prompt[0], None, ())]
        self._is_taken = False

    @property
    def complete(self) -> bool:
        """Whether all tokens have their scores."""
        return len(self._entries) == len(self._prompt)

    def add(self, start: int, logits: Sequence[Floats]) -> None:
        """Take ``logits`` of the tokens from ``start`` on. Those that were computed before, too, are passed over."""
        for place, row in enumerate(logits, start + 1):
            if place == len(self._entries) < len(self._prompt):
                self._entries.append(logprobs(row, self._prompt[place], self._num_top))

    def taken(self) -> Sequence[TokenLogprobs]:
        """All entries, the first time that this is asked."""
        entries, self._is_taken = () if self._is_taken else self._entries, True
        return entries
