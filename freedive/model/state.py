"""What a mixer keeps between steps, as declared in a description: nothing here knows how it is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PerToken:
    """State that a mixer stores for every token, in pages: ``heads`` rows of ``dim`` values in the cache format."""

    heads: int
    dim: int


@dataclass(frozen=True)
class PerSequence:
    """State that a mixer stores once per sequence, in a slot: float32 of ``shape``, zero before the first token.

    Each token updates it with ``input_dim`` values. The values of draft tokens are stored separately until the drafts
    are accepted.
    """

    shape: tuple[int, ...]
    input_dim: int

    @property
    def size(self) -> int:
        """Number of values of one sequence."""
        return math.prod(self.shape)


State = tuple[PerToken | PerSequence, ...]
"""The whole state of a mixer; the sizes of caches, pages, slots and snapshots follow from it."""


def per_token_dim(state: State) -> int:
    """Returns the number of values that pages store for one token."""
    return sum(part.heads * part.dim for part in state if isinstance(part, PerToken))


def per_sequence(state: State) -> list[PerSequence]:
    """Returns the parts of ``state`` that are stored once per sequence."""
    return [part for part in state if isinstance(part, PerSequence)]
