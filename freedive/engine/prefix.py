"""The prefix cache: requests that share a prefix reuse its key-value pages.

The key of a full page is a hash of everything that its bits depend on: the key of the previous page, its tokens, and
how many of them precede each of the runner's boundaries. It does not depend on text or tokenizers.

Where a model keeps per-sequence state too, a request goes on from the last snapshot of it that there is (see
engine/snapshots.py) with all pages before: the state is loaded first, then the pages follow.
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
"""What is read ahead from disk at a time, at most, or one page, and put in place before a step."""

_pack_tokens = struct.Struct(f"<{PAGE_TOKENS}i").pack


class PrefixCache:
    """Lets sequences find, share and restore ``pages``. Without a ``store``, pages are kept in memory only.

    ``snapshots`` are of the per-sequence states, where the model has some.

    ``boundaries`` are the runner's. So far ``num_cached_tokens`` were found in memory, ``num_restored_tokens`` on disk.
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
        """``scheduled`` with the snapshots that are to be taken on its way."""
        if self._snapshots is None:
            return scheduled
        return replace(
            scheduled,
            saves=self._snapshots.plan(scheduled.sequence, scheduled.sequence.num_cached_tokens + scheduled.num_tokens),
        )

    def publish(self, sequence: Sequence) -> None:
        """Register the full pages of ``sequence``, so that other sequences find them."""
        full = sequence.num_cached_tokens // PAGE_TOKENS
        for place in range(sequence.num_registered, full):
            self._save(sequence, place, self._pages.register(sequence.slot, place, self._key(sequence, place)))
        sequence.num_registered = full
        if self._snapshots is not None:
            self._publish(sequence, self._snapshots)

    def _publish(self, sequence: Sequence, snapshots: Snapshots) -> None:
        """Let others find the states of ``sequence`` that were saved. Of an answer's, the last is enough."""
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
        """How many of the pages that ``sequence``, which waits, would find in memory are held by others anyway."""
        pages = []
        for place in self._lacking(sequence):
            if (page := self._pages.find(self._key(sequence, place))) is None:
                break
            pages.append(page)
        return sum(map(self._pages.is_referenced, pages))

    def attach(self, sequence: Sequence) -> None:
        """Give ``sequence`` what is in memory: its last state, and the pages that continue its cached tokens."""
        if self._snapshots is not None and (key := self._next_state(sequence, self._snapshots)):
            self._load(sequence, key, self._snapshots)
        self._attach_pages(sequence)

    def _attach_pages(self, sequence: Sequence) -> None:
        """Attach the registered pages that continue the cached tokens of ``sequence``."""
        for place in self._lacking(sequence):
            if (page := self._pages.find(self._key(sequence, place))) is None:
                return
            self._pages.attach(sequence.slot, place, page)
            self._save(sequence, place, page)
            self.num_cached_tokens += _record_reuse(sequence, place)

    def restore(self, sequences: abc.Sequence[Sequence]) -> set[Sequence]:
        """Give ``sequences`` what is known by now, in memory or on disk, of the tokens that they would compute next.

        Returns those that wait for more from the disk, until the next step.
        """
        waiting = set() if self._snapshots is None else self._restore_states(sequences, self._snapshots)
        for sequence in sequences:
            self._attach_pages(sequence)
        if self._store is not None:
            arrived = self._store.fetch(self._next_reads(sequences, self._store))
            waiting |= {sequence for sequence in sequences if self._fill(sequence, self._store, arrived)}
        for sequence in sequences:
            if sequence.is_resuming and sequence not in waiting:
                sequence.rewind()  # a page that stood between them is lost
        return waiting

    def _restore_states(self, sequences: abc.Sequence[Sequence], snapshots: Snapshots) -> set[Sequence]:
        """Give ``sequences`` the states that are in memory or have been read from disk. Returns those that wait."""
        found = {sequence: key for sequence in sequences if (key := self._next_state(sequence, snapshots))}
        missing = {sequence: key for sequence, key in found.items() if not self._load(sequence, key, snapshots)}
        snapshots.fetch(list(missing.values()))
        return {
            sequence
            for sequence, key in missing.items()
            if not self._load(sequence, key, snapshots) and key in snapshots
        }

    def _next_state(self, sequence: Sequence, snapshots: Snapshots) -> bytes | None:
        """The key of the last snapshot that ``sequence`` can go on from, further on than it stands, if there is one."""
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
        """Load the snapshot ``key`` into the slot of ``sequence``; its pages follow. False if it is not in memory."""
        if not snapshots.load(key, sequence.slot):
            return False
        snapshots.keep(key)
        sequence.state_end = (sequence.page_keys.index(key) + 1) * PAGE_TOKENS
        return True

    def _next_reads(self, sequences: abc.Sequence[Sequence], store: PageStore) -> list[bytes]:
        """The keys of pages to be read next."""
        most, wanted = max(1, STEP_BYTES // store.page_bytes), dict[bytes, None]()
        for sequence in sequences:
            for place in self._lacking(sequence):
                if len(wanted) == most:
                    return list(wanted)
                if (key := self._key(sequence, place)) not in store:
                    break
                wanted[key] = None
        return list(wanted)

    def _fill(self, sequence: Sequence, store: PageStore, arrived: Mapping[bytes, Bytes | None]) -> bool:
        """Give ``sequence`` what has ``arrived`` for it; return whether it waits for more."""
        self._attach_pages(sequence)  # that arrived for a sequence before it
        for place in self._lacking(sequence):
            key = self._key(sequence, place)
            if key not in arrived:
                return key in store
            if (data := arrived[key]) is None:
                return False
            store.fill(int(self._pages.table[sequence.slot, place]), data)
            self._pages.register(sequence.slot, place, key)
            self.num_restored_tokens += _record_reuse(sequence, place)
        return False

    def _save(self, sequence: Sequence, place: int, page: int) -> None:
        """Have the page kept on disk if it is the prompt's. What was answered is, when the conversation goes on."""
        if self._store is not None and (place + 1) * PAGE_TOKENS <= sequence.generation.num_prompt_tokens:
            epoch = self._pages.epochs[page]
            self._store.write(self._key(sequence, place), page, lambda: self._pages.epochs[page] == epoch)

    def _lacking(self, sequence: Sequence) -> range:
        """Places of the full pages that are still to be filled; with per-sequence state, as far as that is loaded."""
        if sequence.needs_all:
            return range(0)
        last = _last_place(sequence)
        if self._snapshots is not None:
            last = min(last, sequence.state_end // PAGE_TOKENS)
        return range(sequence.num_cached_tokens // PAGE_TOKENS, last)

    def _key(self, sequence: Sequence, place: int) -> bytes:
        """Of the full page at ``place`` of its tokens."""
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
    """The end of the places of pages that may be found; not that of the last token, whose logits are wanted."""
    return (len(sequence.tokens) - 1) // PAGE_TOKENS


def _record_reuse(sequence: Sequence, place: int) -> int:
    """Record that ``sequence`` reuses the page at ``place``; return the number of tokens that this saves."""
    count = (place + 1) * PAGE_TOKENS - sequence.num_cached_tokens
    sequence.num_cached_tokens += count
    sequence.num_registered = place + 1
    if sequence.generation.timings.num_preemptions == 0:
        sequence.generation.num_cached_tokens += count
    return count
