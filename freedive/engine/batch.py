"""One step's data: the only thing that passes between the engine and a model's runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

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

    tokens: Ints
    lengths: Ints
    starts: Ints
    pages: Ints
    wanted: Ints
    prompts: Ints


class Runner(Protocol):
    """A model with a key-value cache of ``num_pages`` pages, ready to take steps, one caller at a time.

    ``drafts`` tells whether it predicts further tokens too. ``boundaries`` are places, counted from the end of a
    prompt, from which on tokens are computed otherwise than before: what a token leaves in the cache depends, besides
    on it and the tokens before it, on which of them stand before each.
    """

    vocab_size: int
    num_pages: int
    max_context: int
    drafts: bool
    boundaries: tuple[int, ...]

    def step(self, batch: Batch) -> Floats:
        """Write keys and values of all tokens into their pages; return logits [W, vocab_size].

        Row results do not depend, bit for bit, on the other requests in the batch or on how a prompt was cut.
        """

    def draft(self, tokens: Ints, wanted: Ints) -> Floats:
        """Right after a step, guess one token further: logits [W, vocab_size] of what follows ``tokens``.

        ``tokens`` int32 [T] are those that followed the step's, row by row; ``wanted`` are rows of them. All of a
        request's rows must have gone through, from its first on, for a guess to be a good one.
        """

    def embed(self, wanted: Ints) -> Floats:
        """Right after a step, what the model makes of its tokens: the states [W, hidden] at rows ``wanted`` of it.

        They are those that the output head reads, after the last norm.
        """
