"""Snapshots of per-sequence states: copies from which requests with the same prefix resume.

Pages of keys and values can be shared up to any page boundary. A recurrent state exists only for its current position,
so the engine copies it at positions where later requests are likely to resume: near the end of a prompt, at the last
page of an answer, and every few thousand tokens. The kernels of the layers make the copies when the state reaches the
position. The key of a snapshot is the key of the page that ends at its position.
"""

from __future__ import annotations

from collections import OrderedDict, abc
from collections.abc import Iterable

from freedive.arrays import Bytes
from freedive.engine.page_store import PageStore
from freedive.engine.sequence import Save, Sequence
from freedive.model.batch import PAGE_TOKENS

COST_SHARE = 4
"""Within a prompt, the pages between two snapshots take at least ``COST_SHARE`` times the bytes of a snapshot."""


class Snapshots:
    """Manages snapshots in the rows of ``states`` [num_slots, slot_bytes] after the first ``num_sequences``.

    The first ``num_sequences`` rows are the slots of running sequences. The least recently used snapshot is evicted
    first. Without a ``store``, no snapshot is written to disk. ``page_bytes`` is the size of a page of the cache, and
    ``boundaries`` are those of the runner.
    """

    def __init__(
        self,
        states: Bytes,
        num_sequences: int,
        page_bytes: int,
        boundaries: abc.Sequence[int],
        store: PageStore | None = None,
    ) -> None:
        self._states = states
        self._boundaries = boundaries
        self._store = store
        self._free = list(range(num_sequences, len(states)))
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._epochs = [0] * len(states)
        self._interval = PAGE_TOKENS * max(1, -(-COST_SHARE * states.shape[1] // max(page_bytes, 1)))

    def __len__(self) -> int:
        """Returns the number of snapshots in memory."""
        return len(self._slots)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether the snapshot ``key`` is in memory or on disk."""
        return key in self._slots or self.is_on_disk(key)

    def is_on_disk(self, key: bytes) -> bool:
        """Returns whether the snapshot ``key`` is on disk and reads are not suspended."""
        return self._store is not None and key in self._store

    def load(self, key: bytes, slot: int) -> bool:
        """Copies the snapshot ``key`` into ``slot``. Returns False if it is not in memory."""
        if key not in self._slots:
            return False
        self._slots.move_to_end(key)
        self._states[slot] = self._states[self._slots[key]]
        return True

    def fetch(self, keys: abc.Sequence[bytes]) -> None:
        """Copies the snapshots that have been read from disk into memory, and requests the others of ``keys``."""
        if self._store is None:
            return
        for key, data in self._store.fetch(keys).items():
            if data is not None and key not in self._slots and (slot := self._take()) is not None:
                self._store.fill(slot, data)
                self._slots[key] = slot

    def plan(self, sequence: Sequence, end: int) -> list[Save]:
        """Returns the snapshots to take while the state of ``sequence`` advances to position ``end``."""
        positions = self._positions(sequence, end)
        return [Save(position, slot) for position in positions if (slot := self._take()) is not None]

    def publish(self, save: Save, key: bytes) -> None:
        """Registers the snapshot ``save`` under ``key``, unless another snapshot has this key."""
        if key in self._slots:
            self._free.append(save.slot)
        else:
            self._slots[key] = save.slot

    def keep(self, key: bytes) -> None:
        """Writes the snapshot ``key`` to disk if it is in memory."""
        if self._store is not None and (slot := self._slots.get(key)) is not None:
            epoch = self._epochs[slot]
            self._store.write(key, slot, lambda: self._epochs[slot] == epoch)

    def drop(self, key: bytes) -> None:
        """Removes the snapshot ``key`` from memory, because a later one replaces it."""
        if (slot := self._slots.pop(key, None)) is not None:
            self._free.append(slot)

    def retire(self) -> None:
        """Invalidates all epochs, because these snapshots are no longer used; pending writes are dropped."""
        self._epochs = [-1] * len(self._epochs)

    def _positions(self, sequence: Sequence, end: int) -> Iterable[int]:
        """Returns the page boundaries after the state of ``sequence``, up to ``end``, at which to take snapshots."""
        length = sequence.generation.num_prompt_tokens
        wanted = {length - 1, *(length + boundary for boundary in self._boundaries)}
        if end > length and not self._boundaries:  # with boundaries, tokens have other bits as part of a later prompt
            wanted.add(end)
        places = {position // PAGE_TOKENS * PAGE_TOKENS for position in wanted}
        places.add(min(end, length) // self._interval * self._interval)
        return sorted(place for place in places if sequence.state_end < place <= end)

    def _take(self) -> int | None:
        """Returns a free slot, evicting a snapshot if needed; None if all slots are reserved for snapshots to take."""
        if not self._free and not self._slots:
            return None
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        self._epochs[slot] += 1
        return slot
