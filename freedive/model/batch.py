"""The input of one step, and the interface between the engine and a model's runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from freedive.arrays import Bytes, Floats, Ints
from freedive.errors import Unavailable
from freedive.native import _native

PAGE_TOKENS = _native.PAGE_TOKENS
"""Tokens in one page of the key-value cache."""

NO_SAVES: Ints = np.zeros((0, 3), np.int32)
"""The ``saves`` of a step that copies no state, int32 [0, 3]."""

MAX_DRAFT = _native.MAX_DRAFT
"""Maximum number of draft tokens of one request in a step."""


class UnreadableWeights(Unavailable):
    """Weights cannot be read from disk. ``rows`` are the rows of the step that needed them, or empty if all may be."""

    def __init__(self, what: str, remedy: str = "", *, rows: Sequence[int] = ()) -> None:
        super().__init__(what, remedy)
        self.rows = tuple(rows)


class ChangedWeights(UnreadableWeights):
    """Weights cannot be read from disk, and their file has changed since the model was loaded: loading may mend it."""


@dataclass(frozen=True)
class StateUpdates:
    """How a step updates the per-sequence states of its S requests; all arrays are int32.

    ``slots`` [S] are the slots of the states. ``begins`` [S] are the positions of the states before the step. Tokens
    between this position and the start of the step were accepted draft tokens of the previous step; they are applied
    first. ``ends`` [S] are the positions of the states after the step; rows after them are draft tokens.

    ``saves`` [N, 3] are the copies to make: the index of the request, the position (begins + 1 .. ends) and the slot
    that receives the state of this position.
    """

    slots: Ints
    begins: Ints
    ends: Ints
    saves: Ints

    @classmethod
    def plain(cls, slots: Ints, starts: Ints, lengths: Ints) -> StateUpdates:
        """Returns updates without draft tokens and copies: each state advances over all tokens of the step."""
        return cls(slots, starts, starts + lengths, NO_SAVES)


@dataclass(frozen=True)
class Batch:
    """The input of one step: T tokens of S requests, concatenated.

    ``tokens`` int32 [T]. ``lengths`` int32 [S]: the number of tokens of each request in this step (their sum is T).
    ``starts`` int32 [S]: the position of the first of these tokens, which is the number of cached tokens. ``pages``
    int32 [S, P]: the page table of each request, padded with -1, with room for starts + lengths tokens. ``output_rows``
    int32 [W]: the rows of T whose logits are returned. ``prompts`` int32 [S]: the length of the prompt of each request;
    results may depend on it, because it does not change with the batch. ``states``: the updates of per-sequence states,
    needed if the model has such states.
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
        """Returns one step that computes whole ``prompts`` and returns logits of the last row of each, or of all rows.

        Pages and slots are used in order, from 0.
        """
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
    """A model with a key-value cache of ``num_pages`` pages that computes steps, for one caller at a time.

    ``drafts`` is true if :meth:`draft` can predict further tokens. ``boundaries`` are positions relative to the end of
    the prompt at which the computation of tokens changes (for example its precision). So the cache content of a token
    depends on the tokens up to it and on which of them are before each boundary. ``page_bytes`` is the size of a page
    of the cache. ``states`` uint8 [num_slots, slot_bytes] is the memory of per-sequence states: copying a row copies a
    state. A model without such states has slots of 0 bytes. If ``pages_experts``, steps read experts from disk, so that
    their time depends little on the number of their rows.
    """

    vocab_size: int
    num_pages: int
    max_context: int
    drafts: bool
    pages_experts: bool
    boundaries: tuple[int, ...]

    @property
    def page_bytes(self) -> int: ...

    @property
    def states(self) -> Bytes: ...

    def step(self, batch: Batch) -> Floats:
        """Writes the keys and values of all tokens into their pages and returns logits [W, vocab_size].

        The bits of a row do not depend on the other requests in the batch or on how the prompt was split into chunks.
        Raises UnreadableWeights if weights cannot be read from disk: the same step may succeed later, and a new runner
        helps only against ChangedWeights.
        """

    def draft(self, tokens: Ints, output_rows: Ints) -> Floats:
        """Runs the MTP layer after a step and returns logits [W, vocab_size] of the tokens that follow ``tokens``.

        ``tokens`` int32 [T] are the tokens that followed the tokens of the step, row by row. ``output_rows`` int32 [W]
        are the rows whose logits are returned. The prediction is good only if ``draft`` was called after every step of
        the request.
        """

    def chosen_experts(self, row: int) -> Ints:
        """Returns the experts of row ``row`` of the last step, int32 [layers with experts, num_chosen].

        Layers that choose fewer have -1 for the rest.
        """

    def missed_experts(self) -> Sequence[Sequence[int]]:
        """Returns the experts that the last step read from disk, for each layer with experts; () if none are there."""

    def embed(self, output_rows: Ints) -> Floats:
        """Returns the hidden states [W, hidden] at the rows ``output_rows`` of the last step, after the last norm."""
