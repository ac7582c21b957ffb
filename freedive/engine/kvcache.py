"""Page tables of the paged key-value cache. They only manage page indices; the runner owns the memory.

A full page can be registered under a key, by which other slots find and share it. A registered page without references
stays in the cache until it is evicted; the least recently released page is evicted first.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from freedive.model.batch import PAGE_TOKENS


def pages_for(num_tokens: int) -> int:
    """Returns the number of pages that ``num_tokens`` tokens need; the last page may be partly filled."""
    return -(-num_tokens // PAGE_TOKENS)


class PageTables:
    """One page table row (slot) for each running sequence.

    ``table`` int32 [num_slots, pages_for(max_tokens)] lists the pages of a slot in the order of its tokens, then -1.
    ``epochs`` [num_pages] counts how often each page was allocated.
    """

    def __init__(self, num_pages: int, num_slots: int, max_tokens: int) -> None:
        self.num_pages = num_pages
        self.table = np.full((num_slots, pages_for(max_tokens)), -1, np.int32)
        self.epochs = [0] * num_pages
        self._num_pages = [0] * num_slots
        self._ref_counts = [0] * num_pages
        self._free = list(range(num_pages))
        # Registered pages without references, the least recently released first.
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._pages: dict[bytes, int] = {}
        self._keys: list[bytes | None] = [None] * num_pages

    @property
    def num_free(self) -> int:
        """Number of pages without references, including registered pages."""
        return len(self._free) + len(self._evictable)

    @property
    def num_registered(self) -> int:
        """Number of pages that are registered under a key."""
        return len(self._pages)

    def reserve(self, slot: int, num_tokens: int) -> bool:
        """Allocates pages until ``slot`` has room for ``num_tokens`` tokens.

        Returns False and allocates nothing if too few pages are free.
        """
        count, needed = self._num_pages[slot], pages_for(num_tokens)
        if needed <= count:
            return True
        if needed - count > self.num_free:
            return False
        self.table[slot, count:needed] = [self._allocate() for _ in range(needed - count)]
        self._num_pages[slot] = needed
        return True

    def release(self, slot: int) -> None:
        """Releases all pages of ``slot``, the last one first, so that it is evicted first.

        The prefix cache finds a page only after all pages before it.
        """
        pages = self.table[slot, : self._num_pages[slot]]
        for page in reversed(pages.tolist()):
            self._unreference(page)
        pages.fill(-1)
        self._num_pages[slot] = 0

    def register(self, slot: int, place: int, key: bytes) -> int:
        """Registers the full page at index ``place`` of ``slot`` under ``key``, unless another page has this key.

        Returns the page of the slot.
        """
        page = int(self.table[slot, place])
        if self._pages.setdefault(key, page) == page:
            self._keys[page] = key
        return page

    def find(self, key: bytes) -> int | None:
        """Returns the page that is registered under ``key``, or None."""
        return self._pages.get(key)

    def is_referenced(self, page: int) -> bool:
        """Returns whether a slot references ``page``."""
        return self._ref_counts[page] > 0

    def attach(self, slot: int, place: int, page: int) -> None:
        """Sets the page at index ``place`` of ``slot``, which may be one after its last, to the registered ``page``."""
        if place < self._num_pages[slot]:
            self._unreference(int(self.table[slot, place]))
        self._num_pages[slot] = max(self._num_pages[slot], place + 1)
        self.table[slot, place] = page
        self._ref_counts[page] += 1
        self._evictable.pop(page, None)

    def retire(self) -> None:
        """Invalidates the epochs of all pages, because these tables are no longer used; pending writes are dropped."""
        self.epochs = [-1] * self.num_pages

    def _allocate(self) -> int:
        page = self._free.pop() if self._free else self._evict()
        self._ref_counts[page] = 1
        self.epochs[page] += 1
        return page

    def _evict(self) -> int:
        """Evicts the least recently released page and returns its index."""
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
