"""The prefix cache: requests that share a prefix reuse its key-value pages.

The key of a full page is a hash of everything that its bits depend on: the key of the previous page, its tokens, and
the number of its tokens before each of the runner's boundaries. It does not depend on text or tokenizers.

If a model has per-sequence state too, a request resumes from the last snapshot of this state (see engine/snapshots.py)
for which all earlier pages exist. The state is loaded first, then the pages.
"""

from __future__ import annotations

import struct
from collections import abc
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from freedive.arrays import Bytes
from freedive.engine.kvcache import PageTables
from freedive.engine.page_store import PageStore
from freedive.engine.snapshots import Snapshots
from freedive.model.batch import PAGE_TOKENS

if TYPE_CHECKING:
    from freedive.engine.sequence import ScheduledSequence, Sequence

STEP_BYTES = 16 << 20
"""Maximum number of bytes to read from disk at a time and to copy into pages before a step, but at least one page."""

_pack_tokens = struct.Struct(f"<{PAGE_TOKENS}i").pack


class PrefixCache:
    """Lets sequences find, share and restore ``pages``. Without a ``store``, the cache is in memory only.

    ``snapshots`` are those of per-sequence states, or None if the model has no such state. ``boundaries`` are those of
    the runner. ``num_cached_tokens`` counts tokens found in memory, ``num_restored_tokens`` tokens read from disk.
    """

    def __init__(
        self,
        pages: PageTables,
        boundaries: abc.Sequence[int],
        store: PageStore | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.num_cached_tokens = self.num_restored_tokens = 0
        self._pages = pages
        self._boundaries = boundaries
        self._store = store
        self._snapshots = snapshots

    def with_saves(self, scheduled: ScheduledSequence) -> ScheduledSequence:
        """Returns ``scheduled`` with the snapshots that the step must take."""
        if self._snapshots is None:
            return scheduled
        return replace(
            scheduled,
            saves=self._snapshots.plan(scheduled.sequence, scheduled.sequence.num_cached_tokens + scheduled.num_tokens),
        )

    def publish(self, sequence: Sequence) -> None:
        """Registers the full pages and the snapshots of ``sequence``, so that other sequences find them."""
        full = sequence.num_cached_tokens // PAGE_TOKENS
        for place in range(sequence.num_registered, full):
            self._store_page(sequence, place, self._pages.register(sequence.slot, place, self._key(sequence, place)))
        sequence.num_registered = full
        if self._snapshots is not None:
            self._publish_states(sequence, self._snapshots)

    def _publish_states(self, sequence: Sequence, snapshots: Snapshots) -> None:
        """Registers the saved states of ``sequence``; keeps only the last of those inside the answer."""
        for save in sequence.saved:
            key = self._key(sequence, save.position // PAGE_TOKENS - 1)
            snapshots.publish(save, key)
            if save.position <= sequence.generation.num_prompt_tokens:
                snapshots.keep(key)
            else:
                snapshots.drop(sequence.answer_key)
                sequence.answer_key = key
        sequence.saved = []

    def num_shared(self, sequence: Sequence) -> int:
        """Returns the number of pages that the waiting ``sequence`` would share with sequences that run.

        These pages are not free, so they need not be counted when the sequence is admitted.
        """
        pages = []
        for place in self._missing(sequence):
            if (page := self._pages.find(self._key(sequence, place))) is None:
                break
            pages.append(page)
        return sum(map(self._pages.is_referenced, pages))

    def attach(self, sequence: Sequence) -> None:
        """Attaches what is in memory: the last state of ``sequence``, and the pages that continue its cached tokens."""
        if self._snapshots is not None and (key := self._next_state(sequence, self._snapshots)):
            self._load(sequence, key, self._snapshots)
        self._attach_pages(sequence)

    def _attach_pages(self, sequence: Sequence) -> None:
        """Attaches the registered pages that continue the cached tokens of ``sequence``."""
        for place in self._missing(sequence):
            if (page := self._pages.find(self._key(sequence, place))) is None:
                return
            self._pages.attach(sequence.slot, place, page)
            self._store_page(sequence, place, page)
            self.num_cached_tokens += _record_reuse(sequence, place)

    def restore(self, sequences: abc.Sequence[Sequence]) -> set[Sequence]:
        """Attaches pages in memory, and fills pages read from disk, that continue the cached tokens of ``sequences``.

        Returns the sequences that wait for more pages from disk and must not run in this step.
        """
        waiting = set() if self._snapshots is None else self._restore_states(sequences, self._snapshots)
        for sequence in sequences:
            self._attach_pages(sequence)
        if self._store is not None:
            arrived = self._store.fetch(self._next_reads(sequences, self._store))
            waiting |= {sequence for sequence in sequences if self._fill(sequence, self._store, arrived)}
        for sequence in sequences:
            if sequence.is_resuming and sequence not in waiting:
                sequence.rewind()  # a page before the loaded state is lost, so the state cannot be used
        return waiting

    def _restore_states(self, sequences: abc.Sequence[Sequence], snapshots: Snapshots) -> set[Sequence]:
        """Loads states that have been read from disk into ``sequences``; returns the sequences that wait for one."""
        found = {sequence: key for sequence in sequences if (key := self._next_state(sequence, snapshots))}
        missing = {sequence: key for sequence, key in found.items() if not self._load(sequence, key, snapshots)}
        snapshots.fetch(list(missing.values()))
        return {
            sequence
            for sequence, key in missing.items()
            if not self._load(sequence, key, snapshots) and key in snapshots
        }

    def _next_state(self, sequence: Sequence, snapshots: Snapshots) -> bytes | None:
        """Returns the key of the last snapshot that ``sequence`` can resume from, if it saves tokens; else None."""
        if sequence.needs_all or sequence.is_resuming or sequence.num_pending_tokens == 1:
            return None
        last = None
        for place in range(sequence.num_cached_tokens // PAGE_TOKENS, _last_place(sequence)):
            key = self._key(sequence, place)
            if self._pages.find(key) is None and (self._store is None or key not in self._store):
                break
            last = key if key in snapshots else last
        return last

    def _load(self, sequence: Sequence, key: bytes, snapshots: Snapshots) -> bool:
        """Loads the snapshot ``key`` into the slot of ``sequence`` if it is in memory; the pages are attached later."""
        if not snapshots.load(key, sequence.slot):
            return False
        snapshots.keep(key)
        sequence.state_end = (sequence.page_keys.index(key) + 1) * PAGE_TOKENS
        return True

    def _next_reads(self, sequences: abc.Sequence[Sequence], store: PageStore) -> list[bytes]:
        """Returns the keys of the pages to read from disk next."""
        most, wanted = max(1, STEP_BYTES // store.page_bytes), dict[bytes, None]()
        for sequence in sequences:
            for place in self._missing(sequence):
                if len(wanted) == most:
                    return list(wanted)
                if (key := self._key(sequence, place)) not in store:
                    break
                wanted[key] = None
        return list(wanted)

    def _fill(self, sequence: Sequence, store: PageStore, arrived: Mapping[bytes, Bytes | None]) -> bool:
        """Fills pages of ``sequence`` with those that have ``arrived``; returns whether it waits for more from disk."""
        self._attach_pages(sequence)  # that arrived for a sequence before it
        for place in self._missing(sequence):
            key = self._key(sequence, place)
            if key not in arrived:
                return key in store
            if (data := arrived[key]) is None:
                return False
            store.fill(int(self._pages.table[sequence.slot, place]), data)
            self._pages.register(sequence.slot, place, key)
            self.num_restored_tokens += _record_reuse(sequence, place)
        return False

    def _store_page(self, sequence: Sequence, place: int, page: int) -> None:
        """Writes ``page`` to disk if it is part of the prompt.

        Pages of the answer are written when they are part of the prompt of a later request.
        """
        if self._store is not None and (place + 1) * PAGE_TOKENS <= sequence.generation.num_prompt_tokens:
            epoch = self._pages.epochs[page]
            self._store.write(self._key(sequence, place), page, lambda: self._pages.epochs[page] == epoch)

    def _missing(self, sequence: Sequence) -> range:
        """Returns the indices of the full pages that ``sequence`` lacks, up to its per-sequence state if it has one."""
        if sequence.needs_all:
            return range(0)
        last = _last_place(sequence)
        if self._snapshots is not None:
            last = min(last, sequence.state_end // PAGE_TOKENS)
        return range(sequence.num_cached_tokens // PAGE_TOKENS, last)

    def _key(self, sequence: Sequence, place: int) -> bytes:
        """Returns the key of the full page at index ``place`` of ``sequence``."""
        keys = sequence.page_keys
        while len(keys) <= place:
            begin = len(keys) * PAGE_TOKENS
            tokens = _pack_tokens(*sequence.tokens[begin : begin + PAGE_TOKENS])
            borders = (sequence.generation.num_prompt_tokens + boundary - begin for boundary in self._boundaries)
            before = bytes(min(max(border, 0), PAGE_TOKENS) for border in borders)
            keys.append(
                _hash(
                    (keys[-1] if keys else _hash(sequence.cache_salt.encode(errors="surrogatepass"))) + tokens + before
                )
            )
        return keys[place]


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _last_place(sequence: Sequence) -> int:
    """Returns the number of pages that may be reused: not that of the last token, whose logits must be computed."""
    return (len(sequence.tokens) - 1) // PAGE_TOKENS


def _record_reuse(sequence: Sequence, place: int) -> int:
    """Records that ``sequence`` reuses the page at index ``place``; returns the number of tokens that this saves."""
    count = (place + 1) * PAGE_TOKENS - sequence.num_cached_tokens
    sequence.num_cached_tokens += count
    sequence.num_registered = place + 1
    if sequence.generation.timings.num_preemptions == 0:
        sequence.generation.num_cached_tokens += count
    return count
