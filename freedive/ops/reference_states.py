"""Slots of per-sequence states in plain numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from freedive.model import spec
from freedive.model.batch import MAX_DRAFT
from freedive.model.state import per_sequence

Array = npt.NDArray[np.float32]


class SlotStates:
    """Per-sequence states of ``model`` in ``num_slots`` slots; a state is zero at position 0.

    ``memory`` is float32 [num_slots, values of a slot]. The inputs of draft tokens are stored separately.
    """

    def __init__(self, model: spec.ModelSpec, num_slots: int) -> None:
        self.memory = np.zeros((num_slots, sum(part.size for part in model.per_sequence)), np.float32)
        self._states: list[Array] = []
        self._drafts: list[Array] = []
        self._first_of: list[int] = []
        offset = 0
        for layer in model.blocks:
            self._first_of.append(len(self._states))
            for part in per_sequence(layer.mixer.state):
                columns = self.memory[:, offset : offset + part.size]
                self._states.append(columns.reshape(num_slots, *part.shape, copy=False))
                self._drafts.append(np.zeros((num_slots, MAX_DRAFT, part.input_dim), np.float32))
                offset += part.size

    def of(self, layer: int, slot: int, part: int = 0) -> Array:
        """Returns a writable view of per-sequence state number ``part`` of ``layer`` in ``slot``."""
        state: Array = self._states[self._first_of[layer] + part][slot]
        return state

    def drafts(self, layer: int, slot: int, part: int = 0) -> Array:
        """Returns a writable view of the inputs of the last step's draft tokens, [MAX_DRAFT, input_dim]."""
        drafts: Array = self._drafts[self._first_of[layer] + part][slot]
        return drafts
