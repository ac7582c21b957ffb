"""Which pages of the key-value cache hold whose tokens: bookkeeping only, the memory belongs to the runner.

A prefix cache will live here: :meth:`PageTables.reserve` would find pages already filled, and
:meth:`PageTables.release` would keep them for the next request.
"""

from __future__ import annotations

import numpy as np

from freedive.engine.batch import PAGE_TOKENS


def pages_for(num_tokens: int) -> int:
    """Pages that ``num_tokens`` fill, the last one perhaps in part."""
    return -(-num_tokens // PAGE_TOKENS)


class PageTables:
    """One row of pages for each running request.

    ``table`` int32 [num_rows, pages_for(max_tokens)]: the pages of a row in the order of its tokens, then -1.
    """

    def __init__(self, num_pages: int, num_rows: int, max_tokens: int) -> None:
        self.num_pages = num_pages
        self.table = np.full((num_rows, pages_for(max_tokens)), -1, np.int32)
        self._num_held = [0] * num_rows
        self._free = list(range(num_pages))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def reserve(self, row: int, num_tokens: int) -> bool:
        """Let ``row`` cover ``num_tokens``. False, with nothing taken, when too few pages are free."""
        held, needed = self._num_held[row], pages_for(num_tokens)
        if needed <= held:
            return True
        if needed - held > len(self._free):
            return False
        self.table[row, held:needed] = [self._free.pop() for _ in range(needed - held)]
        self._num_held[row] = needed
        return True

    def release(self, row: int) -> None:
        """Take every page from ``row``."""
        pages = self.table[row, : self._num_held[row]]
        self._free.extend(pages.tolist())
        pages.fill(-1)
        self._num_held[row] = 0
