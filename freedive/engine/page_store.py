"""Stores pages of the key-value cache on disk, so that they are available after a restart.

A page is a file, named by its key: a checksum of key and content, then the content. It gets its name when it is whole.
Nothing waits for the disk to have it: what a crash of the machine leaves half-written fails its checksum.

Only two threads of the store touch the disk, one that reads and one that writes. Whoever uses the store never waits for
it, however long the disk takes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple
from zlib import crc32

import numpy as np

from freedive.arrays import Bytes
from freedive.engine.page_folder import make_private, page_keys, page_name, trim

log = logging.getLogger(__name__)


MAX_QUEUED = 256
"""Pages that may wait to be written; beyond them, new ones are not."""

REST_S = 60
"""Seconds without another attempt to write, or to read, after one has failed or was not answered."""

PATIENCE_S = 1.0
"""Seconds after which a page that has not been read is computed, and the disk left alone."""

CLOSE_S = 2
"""Seconds that are left at the end for what waits to be written."""

UNMEASURED = 1 / 64
"""Part of the limit that a store writes before it measures again what all stores have written."""


class _Job(NamedTuple):
    key: bytes
    page: int
    is_same: Callable[[], bool]


class PageStore:
    """Keeps rows of ``pages``, uint8 [num_pages, page_bytes], in ``folder``, which need not exist yet.

    Files in all folders beside it may take ``max_bytes`` together, or half of what would be free without them; those
    that were not used for longest go first. Other processes may use the folder at the same time. No fault of the
    disk is an error: nothing is found there, then, and nothing written for a while. ``notify`` is called by a thread of
    the store when a page has been read.
    """

    def __init__(self, folder: Path, pages: Bytes, max_bytes: int) -> None:
        self.page_bytes = pages.shape[1]
        self.notify: Callable[[], None] = lambda: None
        self._folder = folder
        self._pages = pages
        self._max_bytes = max_bytes
        self._partial = f"{os.getpid()}-{os.urandom(4).hex()}.partial"
        self._keys = page_keys(folder)
        self._allowance = 0  # bytes that may be written before what is there is measured again
        self._no_writes_until = self._no_reads_until = 0.0
        self._ends_at = float("inf")
        self._said: set[str] = set()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._reading = threading.Condition()
        self._wanted: dict[bytes, float] = {}  # keys to be read, and since when
        self._arrived: dict[bytes, Bytes | None] = {}
        self._reads_since: float | None = None
        self._writer: threading.Thread | None = None  # these begin with the first page that they have to do with
        self._reader: threading.Thread | None = None

    def __contains__(self, key: bytes) -> bool:
        """Whether the page is here, or on its way, and the disk answers."""
        return key in self._keys and time.monotonic() >= self._no_reads_until

    def fetch(self, keys: Sequence[bytes]) -> Mapping[bytes, Bytes | None]:
        """What has been read of ``keys``: a page's content, None where there is nothing whole.

        The others are read meanwhile, in this order; ask again when ``notify`` is called. What was asked for before and
        is not among ``keys`` now is forgotten.
        """
        now = time.monotonic()
        with self._reading:
            self._arrived = {key: self._arrived[key] for key in keys if key in self._arrived}
            self._wanted = {key: self._wanted.get(key, now) for key in keys if key not in self._arrived}
            if not self._wanted:
                return dict(self._arrived)  # a copy, since the reader adds to it
            if now - min(self._reads_since or now, *self._wanted.values()) > PATIENCE_S:
                self._no_reads_until = now + REST_S
                self._wanted = {}
                self._say("prefixes in %s are not read for a while: the disk does not answer", self._folder)
                return dict(self._arrived)
            self._reading.notify()
            arrived = dict(self._arrived)
        if not self._reader:
            self._reader = self._start(self._read, "freedive-page-reader")
        return arrived

    def fill(self, page: int, data: Bytes) -> None:
        """Put what was read into row ``page``."""
        self._pages[page] = data

    def write(self, key: bytes, page: int, is_same: Callable[[], bool]) -> None:
        """Have row ``page`` kept under ``key``, soon, if it is not here yet.

        The row is read later, in place, and need not wait for that: only if ``is_same`` then says that it was not put
        to another use is it kept.
        """
        if key not in self._keys and self._queue.qsize() < MAX_QUEUED:
            self._keys.add(key)
            self._queue.put(_Job(key, page, is_same))
            if not self._writer:
                self._writer = self._start(self._write, "freedive-page-writer")

    def close(self) -> None:
        """Write what is waiting, as far as a moment suffices. May be called again."""
        with self._reading:
            self._ends_at = time.monotonic() + CLOSE_S
            self._reading.notify()
        self._queue.put(None)
        for thread in (self._writer, self._reader):
            if thread:
                thread.join(CLOSE_S)

    def _start(self, work: Callable[[], None], name: str) -> threading.Thread | None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many; later there may be fewer
            self._say("prefixes cannot be kept in %s: %s", self._folder, error)
            return None
        return thread

    def _say(self, message: str, *values: object) -> None:
        """Once."""
        if message not in self._said:
            log.warning(message, *values)
        self._said.add(message)

    # From here on: the thread that reads.

    def _read(self) -> None:
        while True:
            with self._reading:
                self._reading.wait_for(lambda: self._wanted or self._ends_at < float("inf"))
                if self._ends_at < float("inf"):
                    return
                key, self._reads_since = next(iter(self._wanted)), time.monotonic()
            data = self.load(key)
            with self._reading:
                self._reads_since = None
                if self._wanted.pop(key, None) is not None:
                    self._arrived[key] = data
            self.notify()

    def load(self, key: bytes) -> Bytes | None:
        """What is kept under ``key``, if it is there and whole; else it is deleted."""
        path, data, checksum = self._folder / page_name(key), np.empty(self.page_bytes, np.uint8), bytearray(4)
        with suppress(OSError), path.open("rb", buffering=0) as file:
            count = os.readv(file.fileno(), [checksum, data.data])
            if count == 4 + self.page_bytes and not file.read(1) and checksum == _checksum(key, data):
                with suppress(OSError):  # as good on a disk that is only to be read
                    os.utime(file.fileno())
                return data
        self._keys.discard(key)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    # From here on: the thread that writes.

    def _write(self) -> None:
        while (job := self._queue.get()) and time.monotonic() < self._ends_at:
            try:
                written = time.monotonic() >= self._no_writes_until and self._save(job)
            except OSError as error:
                written = False
                self._no_writes_until = time.monotonic() + REST_S
                self._say("prefixes cannot be kept in %s: %s", self._folder, error.strerror)
            if not written:
                self._keys.discard(job.key)

    def _save(self, job: _Job) -> bool:
        if not job.is_same():
            return False
        data, final = self._pages[job.page], self._folder / page_name(job.key)
        temporary = final.with_suffix(f".{self._partial}")
        make_private(self._folder)
        try:
            with temporary.open("wb") as file:
                file.write(_checksum(job.key, data))
                file.write(data.data)
            if not job.is_same():
                return False
            temporary.replace(final)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._allowance -= 4 + self.page_bytes
        if self._allowance < 0:
            self._trim()
        return True

    def _trim(self) -> None:
        """Keep all stores together to the limit. Others write at the same time, so little is written in between."""
        room, deleted = trim(self._folder.parent, self._max_bytes)
        self._allowance = min(room, int(self._max_bytes * UNMEASURED))
        self._keys -= {bytes.fromhex(path.stem) for path in deleted if path.parent == self._folder}


def _checksum(key: bytes, data: Bytes) -> bytes:
    return crc32(data.data, crc32(key)).to_bytes(4)
