"""The prefix cache: what one request has put into the key-value cache, others that begin alike take as it is.

A full page goes by a key, a hash of all that its bits depend on: the key of the page before, its tokens, and how many
of them stand before each of the runner's boundaries. Text and tokenizers do not matter.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from freedive.engine.batch import PAGE_TOKENS
from freedive.engine.kvcache import PageTables
from freedive.engine.page_store import Bytes, PageStore

if TYPE_CHECKING:
    from freedive.engine.scheduler import Request

STEP_BYTES = 16 << 20
"""What is read ahead from disk at a time, at most, or one page, and put in place before a step."""

_pack_tokens = struct.Struct(f"<{PAGE_TOKENS}i").pack


class PrefixCache:
    """Lets requests find, share and restore ``pages``. Without a ``store``, none is kept on disk.

    ``boundaries`` are the runner's. ``num_cached`` tokens were found in memory so far, ``num_restored`` on disk.
    """

    def __init__(self, pages: PageTables, boundaries: Sequence[int], store: PageStore | None = None) -> None:
        self.num_cached = self.num_restored = 0
        self._pages = pages
        self._boundaries = boundaries
        self._store = store

    def keep(self, request: Request) -> None:
        """Let others find the pages that ``request`` has filled."""
        full = request.num_cached // PAGE_TOKENS
        for place in range(request.num_known, full):
            self._save(request, place, self._pages.know(request.row, place, self._key(request, place)))
        request.num_known = full

    def num_held(self, request: Request) -> int:
        """How many of the pages that ``request``, which waits, would find in memory are held by others anyway."""
        pages = []
        for place in _lacking(request):
            if (page := self._pages.find(self._key(request, place))) is None:
                break
            pages.append(page)
        return sum(map(self._pages.is_held, pages))

    def share(self, request: Request) -> None:
        """Let ``request`` hold the known pages that go on where it stands."""
        for place in _lacking(request):
            if (page := self._pages.find(self._key(request, place))) is None:
                return
            self._pages.share(request.row, place, page)
            self._save(request, place, page)
            self.num_cached += _advance(request, place)

    def restore(self, requests: Sequence[Request]) -> set[Request]:
        """Give ``requests`` what is known by now, in memory or on disk, of the tokens that they would compute next.

        Returns those that wait for more from the disk, until the next step.
        """
        for request in requests:
            self.share(request)
        if self._store is None:
            return set()
        arrived = self._store.fetch(self._wanted(requests, self._store))
        return {request for request in requests if self._fill(request, self._store, arrived)}

    def _wanted(self, requests: Sequence[Request], store: PageStore) -> list[bytes]:
        """The keys of pages to be read next."""
        most, wanted = max(1, STEP_BYTES // store.page_bytes), dict[bytes, None]()
        for request in requests:
            for place in _lacking(request):
                if len(wanted) == most:
                    return list(wanted)
                if (key := self._key(request, place)) not in store:
                    break
                wanted[key] = None
        return list(wanted)

    def _fill(self, request: Request, store: PageStore, arrived: Mapping[bytes, Bytes | None]) -> bool:
        """Give ``request`` what has ``arrived`` for it; return whether it waits for more."""
        self.share(request)  # what arrived for one before it
        for place in _lacking(request):
            key = self._key(request, place)
            if key not in arrived:
                return key in store
            if (data := arrived[key]) is None:
                return False
            store.fill(int(self._pages.table[request.row, place]), data)
            self._pages.know(request.row, place, key)
            self.num_restored += _advance(request, place)
        return False

    def _save(self, request: Request, place: int, page: int) -> None:
        """Have the page kept on disk if it is the prompt's. What was answered is, when the conversation goes on."""
        if self._store is not None and (place + 1) * PAGE_TOKENS <= request.generation.num_prompt_tokens:
            edition = self._pages.editions[page]
            self._store.write(self._key(request, place), page, lambda: self._pages.editions[page] == edition)

    def _key(self, request: Request, place: int) -> bytes:
        """Of the full page at ``place`` of its tokens."""
        keys = request.keys
        while len(keys) <= place:
            begin = len(keys) * PAGE_TOKENS
            tokens = _pack_tokens(*request.tokens[begin : begin + PAGE_TOKENS])
            borders = (request.generation.num_prompt_tokens + boundary - begin for boundary in self._boundaries)
            before = bytes(min(max(border, 0), PAGE_TOKENS) for border in borders)
            keys.append(
                _hash((keys[-1] if keys else _hash(request.salt.encode(errors="surrogatepass"))) + tokens + before)
            )
        return keys[place]


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _lacking(request: Request) -> range:
    """Places of the full pages that are still to be filled; not that of the last token, whose logits are wanted."""
    if request.needs_all:
        return range(0)
    return range(request.num_cached // PAGE_TOKENS, (len(request.tokens) - 1) // PAGE_TOKENS)


def _advance(request: Request, place: int) -> int:
    """Take note that ``request`` has been given the page at ``place``; return for how many tokens."""
    count = (place + 1) * PAGE_TOKENS - request.num_cached
    request.num_cached += count
    request.num_known = place + 1
    if request.generation.timings.num_preemptions == 0:
        request.generation.num_cached_tokens += count
    return count
