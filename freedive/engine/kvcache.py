"""Which pages of the key-value cache hold whose tokens: bookkeeping only, the memory belongs to the runner.

A full page can be known by a key, under which other rows find it and share it. When no row holds it any more it stays
until its place is needed; then the page that was left longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from freedive.engine.batch import PAGE_TOKENS


def pages_for(num_tokens: int) -> int:
    """Pages that ``num_tokens`` fill, the last one perhaps in part."""
    return -(-num_tokens // PAGE_TOKENS)


class PageTables:
    """One row of pages for each running request.

    ``table`` int32 [num_rows, pages_for(max_tokens)]: the pages of a row in the order of its tokens, then -1.
    ``editions``: of each page, how often it was taken to be filled anew.
    """

    def __init__(self, num_pages: int, num_rows: int, max_tokens: int) -> None:
        self.num_pages = num_pages
        self.table = np.full((num_rows, pages_for(max_tokens)), -1, np.int32)
        self.editions = [0] * num_pages
        self._num_held = [0] * num_rows
        self._num_holders = [0] * num_pages
        self._free = list(range(num_pages))
        self._left: OrderedDict[int, None] = OrderedDict()  # known pages that no row holds, in the order of leaving
        self._pages: dict[bytes, int] = {}
        self._keys: list[bytes | None] = [None] * num_pages

    @property
    def num_free(self) -> int:
        """Pages that no row holds, those included that are known."""
        return len(self._free) + len(self._left)

    @property
    def num_known(self) -> int:
        """Pages that can be found."""
        return len(self._pages)

    def reserve(self, row: int, num_tokens: int) -> bool:
        """Let ``row`` cover ``num_tokens``. False, with nothing taken, when too few pages are free."""
        held, needed = self._num_held[row], pages_for(num_tokens)
        if needed <= held:
            return True
        if needed - held > self.num_free:
            return False
        self.table[row, held:needed] = [self._take() for _ in range(needed - held)]
        self._num_held[row] = needed
        return True

    def release(self, row: int) -> None:
        """Take every page from ``row``, the last one first: without those before it, it would never be found."""
        pages = self.table[row, : self._num_held[row]]
        for page in reversed(pages.tolist()):
            self._leave(page)
        pages.fill(-1)
        self._num_held[row] = 0

    def know(self, row: int, place: int, key: bytes) -> int:
        """Let the page at ``place`` of ``row``, full now, be found by ``key``, unless another is. Return the page."""
        page = int(self.table[row, place])
        if self._pages.setdefault(key, page) == page:
            self._keys[page] = key
        return page

    def find(self, key: bytes) -> int | None:
        """The page that is known by ``key``."""
        return self._pages.get(key)

    def is_held(self, page: int) -> bool:
        """Whether a row holds it."""
        return self._num_holders[page] > 0

    def share(self, row: int, place: int, page: int) -> None:
        """Let ``row`` hold a known page, in place of its own at ``place`` or after its last."""
        if place < self._num_held[row]:
            self._leave(int(self.table[row, place]))
        self._num_held[row] = max(self._num_held[row], place + 1)
        self.table[row, place] = page
        self._num_holders[page] += 1
        self._left.pop(page, None)

    def retire(self) -> None:
        """Let every page count as taken by others, for these tables are not used any more."""
        self.editions = [-1] * self.num_pages

    def _take(self) -> int:
        page = self._free.pop() if self._free else self._forget()
        self._num_holders[page] = 1
        self.editions[page] += 1
        return page

    def _forget(self) -> int:
        """The known page that was left longest ago, which is not found from now on."""
        page, _ = self._left.popitem(last=False)
        key, self._keys[page] = self._keys[page], None
        assert key is not None
        del self._pages[key]
        return page

    def _leave(self, page: int) -> None:
        self._num_holders[page] -= 1
        if self._num_holders[page]:
            return
        if self._keys[page] is None:
            self._free.append(page)
        else:
            self._left[page] = None
