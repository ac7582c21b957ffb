"""One step's data: the only thing that passes between the engine and a model's runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

PAGE_TOKENS = 32
"""Tokens in one page of the key-value cache."""


@dataclass(frozen=True)
class Batch:
    """Tokens of S requests, T in all, laid end to end.

    ``tokens`` int32 [T]. ``lengths`` int32 [S]: tokens of each request in this step (sums to T). ``starts`` int32 [S]:
    the position of each request's first token, i.e. how many are cached already. ``pages`` int32 [S, P]: each request's
    page table, padded with -1; it covers starts + lengths tokens. ``wanted`` int32 [W]: rows of T whose logits are
    returned. ``prompts`` int32 [S]: how many tokens of each request, from its first, were given rather than generated:
    a property of the request, so that what depends on it does not depend on the batch.
    """

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    pages: npt.NDArray[np.int32]
    wanted: npt.NDArray[np.int32]
    prompts: npt.NDArray[np.int32]


class Runner(Protocol):
    """A model with a key-value cache of ``num_pages`` pages, ready to take steps, one caller at a time."""

    vocab_size: int
    num_pages: int
    max_context: int

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Write keys and values of all tokens into their pages; return logits [W, vocab_size].

        Row results do not depend, bit for bit, on the other requests in the batch or on how a prompt was cut.
        """
