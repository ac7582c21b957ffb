"""The input of one step, and the interface between the engine and a model's runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from freedive.arrays import Bytes, Floats, Ints
from freedive.native import _native

PAGE_TOKENS = _native.PAGE_TOKENS
"""Tokens in one page of the key-value cache."""

NO_SAVES: Ints = np.zeros((0, 3), np.int32)
"""For steps that save no state."""

MAX_DRAFT = _native.MAX_DRAFT
"""Most tokens of a request that a step may compute without knowing whether they will be accepted."""


@dataclass(frozen=True)
class StateUpdates:
    """What a step does to per-sequence states, for each of its S requests; all int32.

    ``slots`` [S]: where the request's state lies. ``begins`` [S]: the position that this state stands at. Tokens from
    there to the step's start were drafts of the step before: accepted since then, they are applied first. ``ends`` [S]:
    the position up to which the step moves the state on; its rows behind that are drafts.

    ``saves`` [N, 3]: request, position and slot of copies to be made of a state as it passes a position of
    begins + 1 .. ends.
    """

    slots: Ints
    begins: Ints
    ends: Ints
    saves: Ints

    @classmethod
    def plain(cls, slots: Ints, starts: Ints, lengths: Ints) -> StateUpdates:
        """Every state moves on over all of a step's tokens: nothing is drafted, nothing saved."""
        return cls(slots, starts, starts + lengths, NO_SAVES)


@dataclass(frozen=True)
class Batch:
    """Tokens of S requests, T in all, laid end to end.

    ``tokens`` int32 [T]. ``lengths`` int32 [S]: tokens of each request in this step (sums to T). ``starts`` int32 [S]:
    the position of each request's first token, i.e. how many are cached already. ``pages`` int32 [S, P]: each request's
    page table, padded with -1; it covers starts + lengths tokens. ``output_rows`` int32 [W]: rows of T whose logits are
    returned. ``prompts`` int32 [S]: how many tokens of each request, from its first, were given rather than generated:
    a property of the request, so that what depends on it does not depend on the batch. ``states``: for a model that
    keeps state of whole sequences.
    """

    tokens: Ints
    lengths: Ints
    starts: Ints
    pages: Ints
    output_rows: Ints
    prompts: Ints
    states: StateUpdates | None = None

    @classmethod
    def whole(cls, prompts: Sequence[Sequence[int]], *, wants_all: bool = False) -> Batch:
        """One step of whole ``prompts``, over pages and slots in order: logits of the last rows, or of all rows."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        ends, nothing = lengths.cumsum(dtype=np.int32), np.zeros_like(lengths)
        counts = -(-lengths // PAGE_TOKENS)
        pages = np.full((len(prompts), counts.max()), -1, np.int32)
        for row, (last, count) in enumerate(zip(counts.cumsum(), counts, strict=True)):
            pages[row, :count] = np.arange(last - count, last)
        return cls(
            tokens=np.concatenate([np.array(prompt, np.int32) for prompt in prompts]),
            lengths=lengths,
            starts=nothing,
            pages=pages,
            output_rows=np.arange(ends[-1], dtype=np.int32) if wants_all else ends - 1,
            prompts=lengths,
            states=StateUpdates.plain(np.arange(len(prompts), dtype=np.int32), nothing, lengths),
        )


class Runner(Protocol):
    """A model with a key-value cache of ``num_pages`` pages, ready to take steps, one caller at a time.

    ``drafts`` tells whether it predicts further tokens too. ``boundaries`` are places, counted from the end of a
    prompt, from which on tokens are computed otherwise than before: what a token leaves in the cache depends, besides
    on it and the tokens before it, on which of them stand before each. ``page_bytes`` is what the cache takes for a
    page. ``states`` uint8 [num_slots, slot_bytes] is the memory of per-sequence states: copying a row copies a state. A
    model that has none has slots of 0 bytes.
    """

    vocab_size: int
    num_pages: int
    max_context: int
    drafts: bool
    boundaries: tuple[int, ...]

    @property
    def page_bytes(self) -> int: ...

    @property
    def states(self) -> Bytes: ...

    def step(self, batch: Batch) -> Floats:
        """Write keys and values of all tokens into their pages; return logits [W, vocab_size].

        Row results do not depend, bit for bit, on the other requests in the batch or on how a prompt was cut.
        """

    def draft(self, tokens: Ints, output_rows: Ints) -> Floats:
        """Right after a step, guess one token further: logits [W, vocab_size] of what follows ``tokens``.

        ``tokens`` int32 [T] are those that followed the step's, row by row; ``output_rows`` are rows of them. All of a
        request's rows must have gone through, from its first on, for a guess to be a good one.
        """

    def embed(self, output_rows: Ints) -> Floats:
        """Right after a step, what the model makes of its tokens: the states [W, hidden] at rows ``output_rows`` of it.

        They are those that the output head reads, after the last norm.
        """
