"""The prefix cache: what one request has put into the key-value cache, others that begin alike take as it is.

A full page goes by a key, a hash of all that its bits depend on: the key of the page before, its tokens, and how many
of them stand before each of the runner's boundaries. Text and tokenizers do not matter.

Where a model keeps per-sequence state too, a request goes on from the last snapshot of it that there is (see
engine/snapshots.py) with all pages before: the state is loaded first, then the pages follow.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from freedive.engine.batch import PAGE_TOKENS
from freedive.engine.kvcache import PageTables
from freedive.engine.page_store import Bytes, PageStore
from freedive.engine.snapshots import Snapshots

if TYPE_CHECKING:
    from freedive.engine.scheduler import Request, Share

STEP_BYTES = 16 << 20
"""What is read ahead from disk at a time, at most, or one page, and put in place before a step."""

_pack_tokens = struct.Struct(f"<{PAGE_TOKENS}i").pack


class PrefixCache:
    """Lets requests find, share and restore ``pages``. Without a ``store``, none is kept on disk.

    ``snapshots`` are of the per-sequence states, where the model has some.

    ``boundaries`` are the runner's. ``num_cached`` tokens were found in memory so far, ``num_restored`` on disk.
    """

    def __init__(
        self,
        pages: PageTables,
        boundaries: Sequence[int],
        store: PageStore | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.num_cached = self.num_restored = 0
        self._pages = pages
        self._boundaries = boundaries
        self._store = store
        self._snapshots = snapshots

    def with_saves(self, share: Share) -> Share:
        """``share`` with the snapshots that are to be taken on its way."""
        if self._snapshots is None:
            return share
        return replace(share, saves=self._snapshots.plan(share.request, share.request.num_cached + share.count))

    def keep(self, request: Request) -> None:
        """Let others find the pages that ``request`` has filled."""
        full = request.num_cached // PAGE_TOKENS
        for place in range(request.num_known, full):
            self._save(request, place, self._pages.know(request.row, place, self._key(request, place)))
        request.num_known = full
        if self._snapshots is not None:
            self._publish(request, self._snapshots)

    def _publish(self, request: Request, snapshots: Snapshots) -> None:
        """Let others find the states of ``request`` that were saved. Of an answer's, the last is enough."""
        for save in request.saved:
            key = self._key(request, save.position // PAGE_TOKENS - 1)
            snapshots.publish(save, key)
            if save.position <= request.generation.num_prompt_tokens:
                snapshots.keep(key)
            else:
                snapshots.drop(request.answer_key)
                request.answer_key = key
        request.saved = []

    def num_held(self, request: Request) -> int:
        """How many of the pages that ``request``, which waits, would find in memory are held by others anyway."""
        pages = []
        for place in self._lacking(request):
            if (page := self._pages.find(self._key(request, place))) is None:
                break
            pages.append(page)
        return sum(map(self._pages.is_held, pages))

    def share(self, request: Request) -> None:
        """Let ``request`` hold the known pages that go on where it stands."""
        if self._snapshots is not None and (key := self._next_state(request, self._snapshots)):
            self._load(request, key, self._snapshots)
        for place in self._lacking(request):
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
        waiting = set() if self._snapshots is None else self._restore_states(requests, self._snapshots)
        if self._store is not None:
            arrived = self._store.fetch(self._wanted(requests, self._store))
            waiting |= {request for request in requests if self._fill(request, self._store, arrived)}
        for request in requests:
            if request.state_end > request.num_cached and request not in waiting:
                request.rewind()  # a page that stood between them is lost
        return waiting

    def _restore_states(self, requests: Sequence[Request], snapshots: Snapshots) -> set[Request]:
        """Give ``requests`` the states that have been read from disk. Returns those that wait for one."""
        awaited = {request: key for request in requests if (key := self._next_state(request, snapshots))}
        snapshots.fetch(list(awaited.values()))
        for request, key in awaited.items():
            self._load(request, key, snapshots)
        return {request for request, key in awaited.items() if not request.is_resuming and key in snapshots}

    def _next_state(self, request: Request, snapshots: Snapshots) -> bytes | None:
        """The key of the last snapshot that ``request`` can go on from, further on than it stands, if there is one."""
        if request.needs_all or request.is_resuming or request.num_pending == 1:
            return None
        last = None
        for place in range(request.num_cached // PAGE_TOKENS, _last_place(request)):
            key = self._key(request, place)
            if self._pages.find(key) is None and (self._store is None or key not in self._store):
                break
            last = key if key in snapshots else last
        return last

    def _load(self, request: Request, key: bytes, snapshots: Snapshots) -> None:
        """Go on from the snapshot ``key`` if it is in memory: its pages follow."""
        if snapshots.load(key, request.row):
            snapshots.keep(key)
            request.state_end = (request.keys.index(key) + 1) * PAGE_TOKENS

    def _wanted(self, requests: Sequence[Request], store: PageStore) -> list[bytes]:
        """The keys of pages to be read next."""
        most, wanted = max(1, STEP_BYTES // store.page_bytes), dict[bytes, None]()
        for request in requests:
            for place in self._lacking(request):
                if len(wanted) == most:
                    return list(wanted)
                if (key := self._key(request, place)) not in store:
                    break
                wanted[key] = None
        return list(wanted)

    def _fill(self, request: Request, store: PageStore, arrived: Mapping[bytes, Bytes | None]) -> bool:
        """Give ``request`` what has ``arrived`` for it; return whether it waits for more."""
        self.share(request)  # what arrived for one before it
        for place in self._lacking(request):
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

    def _lacking(self, request: Request) -> range:
        """Places of the full pages that are still to be filled; with per-sequence state, as far as that is loaded."""
        if request.needs_all:
            return range(0)
        last = _last_place(request)
        if self._snapshots is not None:
            last = min(last, request.state_end // PAGE_TOKENS)
        return range(request.num_cached // PAGE_TOKENS, last)

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


def _last_place(request: Request) -> int:
    """The end of the places of pages that may be found; not that of the last token, whose logits are wanted."""
    return (len(request.tokens) - 1) // PAGE_TOKENS


def _advance(request: Request, place: int) -> int:
    """Take note that ``request`` has been given the page at ``place``; return for how many tokens."""
    count = (place + 1) * PAGE_TOKENS - request.num_cached
    request.num_cached += count
    request.num_known = place + 1
    if request.generation.timings.num_preemptions == 0:
        request.generation.num_cached_tokens += count
    return count
