"""The limits of work, memory and time for one rendering of a template."""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from itertools import islice
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_SIZE = 1 << 24
"""The most characters or items of any value in a template, including its result."""
MAX_WORK = 1 << 27
"""The most characters that are read or created, about 5 ns each."""
MAX_MADE = 1 << 26
"""The most bytes of all values that are created."""
MAX_S = 5.0
"""The most CPU seconds: ten times what MAX_WORK takes, since pauses of the process (garbage collection, a hypervisor's
stolen time) count as time of the thread, and must not refuse what usually takes milliseconds."""

STEP = 1 << 9
"""The work of one loop iteration or macro call, so that 262,144 of them are possible."""
ITEM = 64
"""The work and the bytes that a number or a list entry counts as."""
MAX_INT_BITS = 4096
"""The most bits of a whole number."""


class RenderBudget:
    """Counts work and memory of one rendering. Every method raises SecurityError at a limit."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Resets the counts for a new rendering."""
        self._work = self._made = 0
        self._deadline = time.thread_time() + MAX_S
        self._sizes: dict[int, tuple[Any, int]] = {}  # also holds the value, so that its id is not reused

    def spend(self, work: int) -> None:
        """Counts ``work`` that is about to be done."""
        self._work += work
        if self._work > MAX_WORK:
            raise SecurityError(f"it takes more than {MAX_WORK // STEP} steps, or as much work as these")
        if time.thread_time() > self._deadline:
            raise SecurityError(f"it takes more than {MAX_S:g} s")

    def make(self, value: Any) -> Any:
        """Counts a new ``value`` and returns it; its items were counted before."""
        if isinstance(value, str):
            self.take(len(value) if value.isascii() else 4 * len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.take(ITEM * (1 + len(value)))
            self.measure(value)
        elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise SecurityError("it makes a number that is too large")
        return value

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """Returns the items of ``values`` as a list, of bounded length even if they are an endless iterator."""
        items = list(islice(values, MAX_SIZE // ITEM + 1))
        self.spend(check_size(ITEM * len(items)))
        return items

    def take(self, num_bytes: int) -> None:
        """Counts ``num_bytes`` of memory that new values take."""
        self._made += num_bytes
        if self._made > MAX_MADE:
            raise SecurityError(f"it makes more than {MAX_MADE >> 20} MB of values")

    def touch(self, value: Any) -> Any:
        """Counts a complete read of ``value`` and returns it."""
        self.spend(self.measure(value))
        return value

    def measure(self, value: Any) -> int:
        """Returns the approximate length of ``value`` as text without creating it: nested lists can be very long.

        Templates cannot change lists and objects, so each is measured once.
        """
        if isinstance(value, str):
            return check_size(len(value))
        if isinstance(value, Namespace):
            raise SecurityError("it writes a namespace, or puts it into a list")
        if isinstance(value, range):
            return check_size(ITEM * len(value))
        if isinstance(value, int):
            return max(ITEM, value.bit_length() // 3)
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
    """Returns ``size``. Raises SecurityError if it is more than :data:`MAX_SIZE`."""
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a value of more than {MAX_SIZE} characters")
    return size
