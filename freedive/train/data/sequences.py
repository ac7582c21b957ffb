"""Batches of texts packed end to end; no text attends to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from freedive.arrays import Floats


@dataclass(frozen=True)
class Sequences:
    """Texts laid end to end, T tokens in all, of which none sees another.

    ``tokens``, ``targets`` int64 [T]: what is read, and what follows; ``weights`` float32 [T] of the targets' losses;
    ``lengths`` int64 [texts].
    """

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[tuple[npt.NDArray[np.integer[Any]], Floats]]) -> Sequences:
        """Of texts' tokens and their weights, one more of each than there will be rows."""
        return cls(
            np.concatenate([tokens[:-1] for tokens, _ in texts], dtype=np.int64),
            np.concatenate([tokens[1:] for tokens, _ in texts], dtype=np.int64),
            np.concatenate([weights[1:] for _, weights in texts], dtype=np.float32),
            np.array([len(tokens) - 1 for tokens, _ in texts]),
        )

    def split(self, num_tokens: int) -> Iterator[Sequences]:
        """Parts of whole texts, of at most ``num_tokens`` where a text is not longer than that."""
        ends, first = np.cumsum(self.lengths), 0
        while first < len(ends):
            begin = int(ends[first] - self.lengths[first])
            stop = max(first + 1, int(np.searchsorted(ends, begin + num_tokens, "right")))
            rows = slice(begin, int(ends[stop - 1]))
            yield Sequences(self.tokens[rows], self.targets[rows], self.weights[rows], self.lengths[first:stop])
            first = stop

    def further(self) -> Sequences:
        """The same one token further: what follows is read, and what comes after it to be told."""
        ends = np.cumsum(self.lengths) - 1
        targets, weights = np.roll(self.targets, -1), np.roll(self.weights, -1)
        weights[ends] = 0
        return Sequences(self.targets, targets, weights, self.lengths)

    @property
    def mean_context(self) -> float:
        """How many tokens a token's text has, on average."""
        return float((self.lengths**2).sum() / self.lengths.sum())
