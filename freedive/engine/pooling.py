"""Pools the hidden states of a prompt into one embedding vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

Pooling = Literal["mean", "last"]


class Pool:
    """Pools the hidden states of a prompt's tokens, by mean or last token, into one vector of L2 norm 1."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._sum: npt.NDArray[np.float64] = np.zeros(0)

    def add(self, states: Iterable[npt.NDArray[np.float32]], *, first: bool) -> None:
        """Adds the ``states`` [hidden] of the next tokens; ``first`` starts a new sum.

        The sum is the same to the bit for any division of the prompt into chunks.
        """
        total = None if first else self._sum
        for state in states:
            wide = state.astype(np.float64)
            total = wide if total is None or self._pooling == "last" else total + wide
        assert total is not None
        self._sum = total

    def vector(self) -> npt.NDArray[np.float32]:
        """Returns the embedding, float32 [hidden]."""
        return (self._sum / max(float(np.linalg.norm(self._sum)), 1e-30)).astype(np.float32)
