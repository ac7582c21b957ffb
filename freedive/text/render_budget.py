"""What one rendering of a template may take: work, memory and time, all its steps together."""

from __future__ import annotations

import time
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_SIZE = 1 << 24
"""Characters and items of any value that a template makes, its result included."""
MAX_WORK = 1 << 27
"""Characters that are looked at or made, about 5 ns each."""
MAX_MADE = 1 << 26
"""Bytes of all values that are made."""
MAX_S = 1.0
"""Seconds of computation."""

STEP = 1 << 9
"""The work of a round of a loop or of a macro call: there can be 262,144 of them."""
ITEM = 64
"""What a number, or a place in a list, counts as."""


class RenderBudget:
    """Counts what one rendering takes. Every method raises SecurityError as soon as it is too much."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new rendering."""
        self._work = self._made = 0
        self._deadline = time.thread_time() + MAX_S
        self._sizes: dict[int, tuple[Any, int]] = {}  # holds the value, too, so that its id stays its own

    def spend(self, work: int) -> None:
        """Take note of ``work`` that is about to be done."""
        self._work += work
        if self._work > MAX_WORK:
            raise SecurityError(f"it takes more than {MAX_WORK // STEP} steps, or as much work as these")
        if time.thread_time() > self._deadline:
            raise SecurityError(f"it takes more than {MAX_S:g} s")

    def make(self, value: Any) -> Any:
        """``value``, which was made; what it holds was counted before."""
        if isinstance(value, str):
            self._make(len(value) if value.isascii() else 4 * len(value))
        elif isinstance(value, (list, tuple, dict)):
            self._make(ITEM * (1 + len(value)))
            self.measure(value)
        return value

    def _make(self, num_bytes: int) -> None:
        self._made += num_bytes
        if self._made > MAX_MADE:
            raise SecurityError(f"it makes more than {MAX_MADE >> 20} MB of values")

    def touch(self, value: Any) -> Any:
        """``value``, which is about to be looked at as a whole."""
        self.spend(self.measure(value))
        return value

    def measure(self, value: Any) -> int:
        """How long ``value`` is as text, about, without making the text: lists can hold one another many times over.

        Templates cannot change lists and objects, so that each is measured once.
        """
        if isinstance(value, str):
            return check_size(len(value))
        if isinstance(value, Namespace):
            raise SecurityError("it writes a namespace, or puts it into a list")
        if isinstance(value, range):
            return check_size(ITEM * len(value))
        if not isinstance(value, (list, tuple, Mapping, KeysView, ValuesView, ItemsView)):
            return ITEM
        known = self._sizes.get(id(value))
        if known is None:
            parts = value.items() if isinstance(value, Mapping) else value
            self.spend(ITEM * len(value))
            size = ITEM
            for part in parts:
                size = check_size(size + ITEM + self.measure(part))
            known = self._sizes[id(value)] = (value, size)
        return known[1]


def check_size(size: int) -> int:
    """``size``. Raises SecurityError where no value may be so large."""
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a value of more than {MAX_SIZE} characters")
    return size
