"""Snapshots of per-sequence states: copies from which requests that begin alike go on.

Pages of keys and values can be shared from any page boundary on. A recurrent state is only what it was at one position,
so copies are made at positions where others are likely to go on: near the end of a prompt, at the last page of an
answer, and every few thousand tokens. The layers' kernels make them as the state passes a position. A snapshot is found
by the key of the page that it ends with.
"""

from __future__ import annotations

from collections import OrderedDict, abc
from collections.abc import Iterable

from freedive.arrays import Bytes
from freedive.engine.page_store import PageStore
from freedive.engine.sequence import Save, Sequence
from freedive.model.batch import PAGE_TOKENS

COST_SHARE = 4
"""Along a prompt a snapshot is taken where pages since the last one take at least this many times its bytes."""


class Snapshots:
    """Copies in ``states`` [num_slots, slot_bytes], behind the slots of the ``num_sequences`` that may run.

    The least recently used one makes room. Without a ``store`` none is kept on disk. ``page_bytes`` tells what a page
    of the cache takes, ``boundaries`` are the runner's.
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
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self._epochs = [0] * len(states)
        self._interval = PAGE_TOKENS * max(1, -(-COST_SHARE * states.shape[1] // max(page_bytes, 1)))

    def __len__(self) -> int:
        """Snapshots in memory."""
        return len(self._slots)

    def __contains__(self, key: bytes) -> bool:
        """Whether there is one in memory or on disk."""
        return key in self._slots or self.is_on_disk(key)

    def is_on_disk(self, key: bytes) -> bool:
        """Whether there is one on a disk that answers."""
        return self._store is not None and key in self._store

    def load(self, key: bytes, slot: int) -> bool:
        """Copy the snapshot into ``slot``. False where it is not in memory."""
        if key not in self._slots:
            return False
        self._slots.move_to_end(key)
        self._states[slot] = self._states[self._slots[key]]
        return True

    def fetch(self, keys: abc.Sequence[bytes]) -> None:
        """Bring snapshots from disk to memory, as far as they have been read; others are read meanwhile."""
        if self._store is None:
            return
        for key, data in self._store.fetch(keys).items():
            if data is not None and key not in self._slots and (slot := self._take()) is not None:
                self._store.fill(slot, data)
                self._slots[key] = slot

    def plan(self, sequence: Sequence, end: int) -> list[Save]:
        """What to save of ``sequence`` while its state moves on to position ``end``."""
        positions = self._positions(sequence, end)
        return [Save(position, slot) for position in positions if (slot := self._take()) is not None]

    def publish(self, save: Save, key: bytes) -> None:
        """Let what was saved be found by ``key``."""
        if key in self._slots:
            self._free.append(save.slot)
        else:
            self._slots[key] = save.slot

    def keep(self, key: bytes) -> None:
        """Have the snapshot written to disk, if it is in memory."""
        if self._store is not None and (slot := self._slots.get(key)) is not None:
            epoch = self._epochs[slot]
            self._store.write(key, slot, lambda: self._epochs[slot] == epoch)

    def drop(self, key: bytes) -> None:
        """Forget what is in memory: another one is more useful."""
        if (slot := self._slots.pop(key, None)) is not None:
            self._free.append(slot)

    def retire(self) -> None:
        """Let every slot count as taken by others, for these snapshots are not used any more."""
        self._epochs = [-1] * len(self._epochs)

    def _positions(self, sequence: Sequence, end: int) -> Iterable[int]:
        """Page boundaries behind the state of ``sequence``, up to ``end``."""
        length = sequence.generation.num_prompt_tokens
        wanted = {length - 1, *(length + boundary for boundary in self._boundaries)}
        if end > length and not self._boundaries:  # else an answer is computed otherwise as part of a prompt
            wanted.add(end)
        places = {position // PAGE_TOKENS * PAGE_TOKENS for position in wanted}
        places.add(min(end, length) // self._interval * self._interval)
        return sorted(place for place in places if sequence.state_end < place <= end)

    def _take(self) -> int | None:
        """A slot to be filled, unless all of them are being filled."""
        if not self._free and not self._slots:
            return None
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        self._epochs[slot] += 1
        return slot
