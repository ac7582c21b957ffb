"""Page tables of the paged key-value cache: bookkeeping only, the memory belongs to the runner.

A full page can be registered under a key, by which other slots find and share it. A page without references stays in
the cache until it is evicted; the least recently released page is evicted first.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from freedive.model.batch import PAGE_TOKENS


def pages_for(num_tokens: int) -> int:
    """Pages that ``num_tokens`` fill, the last one perhaps in part."""
    return -(-num_tokens // PAGE_TOKENS)


class PageTables:
    """One page table row (slot) for each running sequence.

    ``table`` int32 [num_rows, pages_for(max_tokens)]: the pages of a row in the order of its tokens, then -1.
    ``epochs``: how often each page was allocated.
    """

    def __init__(self, num_pages: int, num_slots: int, max_tokens: int) -> None:
        self.num_pages = num_pages
        self.table = np.full((num_slots, pages_for(max_tokens)), -1, np.int32)
        self.epochs = [0] * num_pages
        self._num_pages = [0] * num_slots
        self._ref_counts = [0] * num_pages
        self._free = list(range(num_pages))
        self._evictable: OrderedDict[int, None] = (
            OrderedDict()
        )  # registered pages without references, least recent first
        self._pages: dict[bytes, int] = {}
        self._keys: list[bytes | None] = [None] * num_pages

    @property
    def num_free(self) -> int:
        """Pages without references, registered ones included."""
        return len(self._free) + len(self._evictable)

    @property
    def num_registered(self) -> int:
        """Pages that are registered under a key."""
        return len(self._pages)

    def reserve(self, slot: int, num_tokens: int) -> bool:
        """Let ``slot`` cover ``num_tokens``. False, with nothing taken, when too few pages are free."""
        held, needed = self._num_pages[slot], pages_for(num_tokens)
        if needed <= held:
            return True
        if needed - held > self.num_free:
            return False
        self.table[slot, held:needed] = [self._take() for _ in range(needed - held)]
        self._num_pages[slot] = needed
        return True

    def release(self, slot: int) -> None:
        """Take every page from ``slot``, the last one first: without those before it, it would never be found."""
        pages = self.table[slot, : self._num_pages[slot]]
        for page in reversed(pages.tolist()):
            self._unreference(page)
        pages.fill(-1)
        self._num_pages[slot] = 0

    def register(self, slot: int, place: int, key: bytes) -> int:
        """Let the page at ``place`` of ``slot``, full now, be found by ``key``, unless another is. Return the page."""
        page = int(self.table[slot, place])
        if self._pages.setdefault(key, page) == page:
            self._keys[page] = key
        return page

    def find(self, key: bytes) -> int | None:
        """The page registered under ``key``."""
        return self._pages.get(key)

    def is_referenced(self, page: int) -> bool:
        """Whether a slot references ``page``."""
        return self._ref_counts[page] > 0

    def attach(self, slot: int, place: int, page: int) -> None:
        """Let ``slot`` reference a registered page, instead of its own page at ``place`` or after its last page."""
        if place < self._num_pages[slot]:
            self._unreference(int(self.table[slot, place]))
        self._num_pages[slot] = max(self._num_pages[slot], place + 1)
        self.table[slot, place] = page
        self._ref_counts[page] += 1
        self._evictable.pop(page, None)

    def retire(self) -> None:
        """Let every page count as taken by others, for these tables are not used any more."""
        self.epochs = [-1] * self.num_pages

    def _take(self) -> int:
        page = self._free.pop() if self._free else self._evict()
        self._ref_counts[page] = 1
        self.epochs[page] += 1
        return page

    def _evict(self) -> int:
        """Evict the least recently released page, and return it."""
        page, _ = self._evictable.popitem(last=False)
        key, self._keys[page] = self._keys[page], None
        assert key is not None
        del self._pages[key]
        return page

    def _unreference(self, page: int) -> None:
        self._ref_counts[page] -= 1
        if self._ref_counts[page]:
            return
        if self._keys[page] is None:
            self._free.append(page)
        else:
            self._evictable[page] = None
