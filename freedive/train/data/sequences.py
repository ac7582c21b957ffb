"""Batches of documents packed end to end; no document attends to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from freedive.arrays import Floats


@dataclass(frozen=True)
class Sequences:
    """Documents packed end to end, T tokens in all; no document attends to another.

    ``tokens`` int64 [T] are the inputs and ``targets`` int64 [T] the tokens that follow them; ``weights`` float32 [T]
    are the loss weights of the targets; ``lengths`` int64 [documents].
    """

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[tuple[npt.NDArray[np.integer[Any]], Floats]]) -> Sequences:
        """Packs documents, each given as tokens [n + 1] and their loss weights [n + 1], as n rows each."""
        return cls(
            np.concatenate([tokens[:-1] for tokens, _ in texts], dtype=np.int64),
            np.concatenate([tokens[1:] for tokens, _ in texts], dtype=np.int64),
            np.concatenate([weights[1:] for _, weights in texts], dtype=np.float32),
            np.array([len(tokens) - 1 for tokens, _ in texts]),
        )

    def split(self, num_tokens: int) -> Iterator[Sequences]:
        """Yields micro-batches of whole documents, each of at most ``num_tokens`` tokens or of one document."""
        ends, first = np.cumsum(self.lengths), 0
        while first < len(ends):
            begin = int(ends[first] - self.lengths[first])
            stop = max(first + 1, int(np.searchsorted(ends, begin + num_tokens, "right")))
            rows = slice(begin, int(ends[stop - 1]))
            yield Sequences(self.tokens[rows], self.targets[rows], self.weights[rows], self.lengths[first:stop])
            first = stop

    def further(self) -> Sequences:
        """Returns the batch of multi-token prediction: the targets become inputs, and the tokens after them the
        targets."""
        ends = np.cumsum(self.lengths) - 1
        targets, weights = np.roll(self.targets, -1), np.roll(self.weights, -1)
        weights[ends] = 0
        return Sequences(self.targets, targets, weights, self.lengths)

    @property
    def mean_context(self) -> float:
        """The mean over all tokens of the length of their document, in tokens."""
        return float((self.lengths**2).sum() / self.lengths.sum())
