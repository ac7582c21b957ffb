"""Stores pages of the key-value cache on disk, so that they are available after a restart.

Each page is a file named by its key. It has a checksum of folder name, key and content, then the content. A file is
renamed to its final name when it is complete. The store does not call fsync: if the machine crashes, a partly written
file fails its checksum.

Only two threads of the store access the disk, a reader and a writer. The caller never waits for the disk.
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
"""Maximum number of pages that wait to be written; further pages are not written."""

BACKOFF_S = 60
"""Seconds without writes after a failed write, and without reads after a read that exceeded ``READ_TIMEOUT_S``."""

READ_TIMEOUT_S = 1.0
"""Seconds to wait for a page from disk; after that, its tokens are computed instead."""

CLOSE_S = 2
"""Seconds that :meth:`PageStore.close` waits for each thread to finish its work."""

UNMEASURED = 1 / 64
"""Fraction of the size limit that a store writes before it measures the size of all stores again."""


class _Job(NamedTuple):
    key: bytes
    page: int
    is_same: Callable[[], bool]


class PageStore:
    """Stores rows of ``pages``, uint8 [num_pages, page_bytes], as files in ``folder``, which need not exist yet.

    All folders with the same parent may take ``max_bytes`` together, or half of the disk space that would be free
    without them; the least recently used pages are deleted first. Several processes may use a folder at the same time.
    A disk error raises no exception: the store then finds no pages and writes none for ``BACKOFF_S`` seconds. The
    reader thread calls ``notify`` when it has read a page.
    """

    def __init__(self, folder: Path, pages: Bytes, max_bytes: int) -> None:
        self.page_bytes = pages.shape[1]
        self.notify: Callable[[], None] = lambda: None
        self._folder = folder
        self._pages = pages
        self._max_bytes = max_bytes
        self._partial = f"{os.getpid()}-{os.urandom(4).hex()}.partial"
        self._keys = page_keys(folder)
        self._allowance = 0  # bytes that may be written before the size of all stores is measured again
        self._no_writes_until = self._no_reads_until = 0.0
        self._ends_at = float("inf")
        self._warned: set[str] = set()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._reading = threading.Condition()
        self._wanted: dict[bytes, float] = {}  # keys to be read, with the time of the first request
        self._arrived: dict[bytes, Bytes | None] = {}
        self._reads_since: float | None = None
        self._writer: threading.Thread | None = None  # each thread starts when it gets its first page
        self._reader: threading.Thread | None = None

    def __contains__(self, key: bytes) -> bool:
        """Returns whether the page is stored or waits to be written, and reads are not suspended."""
        return key in self._keys and time.monotonic() >= self._no_reads_until

    def fetch(self, keys: Sequence[bytes]) -> Mapping[bytes, Bytes | None]:
        """Returns those of ``keys`` that have been read: the content of each page, or None if it is missing or damaged.

        The reader thread reads the other pages in the order of ``keys`` and calls ``notify`` after each; call again
        then. Keys of earlier calls that are not in ``keys`` are dropped.
        """
        now = time.monotonic()
        with self._reading:
            self._arrived = {key: self._arrived[key] for key in keys if key in self._arrived}
            self._wanted = {key: self._wanted.get(key, now) for key in keys if key not in self._arrived}
            if not self._wanted:
                return dict(self._arrived)  # a copy, since the reader adds to it
            if now - min(self._reads_since or now, *self._wanted.values()) > READ_TIMEOUT_S:
                self._no_reads_until = now + BACKOFF_S
                self._wanted = {}
                self._warn("prefixes in %s are not read for a while: the disk does not answer", self._folder)
                return dict(self._arrived)
            self._reading.notify()
            arrived = dict(self._arrived)
        if not self._reader:
            self._reader = self._start(self._read, "freedive-page-reader")
        return arrived

    def fill(self, page: int, data: Bytes) -> None:
        """Copies ``data`` into row ``page``."""
        self._pages[page] = data

    def write(self, key: bytes, page: int, is_same: Callable[[], bool]) -> None:
        """Queues row ``page`` to be written under ``key``, unless it is stored already or the queue is full.

        The writer thread copies the row later, and the caller may reuse the row before. The writer calls ``is_same``
        before and after the copy, and discards the copy if the row has been reused.
        """
        if key not in self._keys and self._queue.qsize() < MAX_QUEUED:
            self._keys.add(key)
            self._queue.put(_Job(key, page, is_same))
            if not self._writer:
                self._writer = self._start(self._write, "freedive-page-writer")

    def close(self) -> None:
        """Writes queued pages for at most ``CLOSE_S`` seconds and ends both threads. May be called again."""
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
        except RuntimeError as error:  # too many threads run; a later attempt may succeed
            self._warn("prefixes cannot be kept in %s: %s", self._folder, error)
            return None
        return thread

    def _warn(self, message: str, *values: object) -> None:
        """Logs each ``message`` only once."""
        if message not in self._warned:
            log.warning(message, *values)
        self._warned.add(message)

    # Methods of the reader thread.

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
        """Returns the page stored under ``key``, or None if it is missing or damaged; deletes a damaged file."""
        path, data, checksum = self._folder / page_name(key), np.empty(self.page_bytes, np.uint8), bytearray(4)
        with suppress(OSError), path.open("rb", buffering=0) as file:
            count = os.readv(file.fileno(), [checksum, data.data])
            if count == 4 + self.page_bytes and not file.read(1) and checksum == _checksum(self._folder, key, data):
                with suppress(OSError):  # the time of last use cannot be set on a read-only disk
                    os.utime(file.fileno())
                return data
        self._keys.discard(key)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    # Methods of the writer thread.

    def _write(self) -> None:
        while (job := self._queue.get()) and time.monotonic() < self._ends_at:
            try:
                written = time.monotonic() >= self._no_writes_until and self._save(job)
            except OSError as error:
                written = False
                self._no_writes_until = time.monotonic() + BACKOFF_S
                self._warn("prefixes cannot be kept in %s: %s", self._folder, error.strerror)
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
                file.write(_checksum(self._folder, job.key, data))
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
        """Deletes pages of all stores until they respect the limit, and computes the number of bytes to write next.

        This number is small, because other processes write at the same time.
        """
        room, deleted = trim(self._folder.parent, self._max_bytes)
        self._allowance = min(room, int(self._max_bytes * UNMEASURED))
        self._keys -= {bytes.fromhex(path.stem) for path in deleted if path.parent == self._folder}


def _checksum(folder: Path, key: bytes, data: Bytes) -> bytes:
    """Covers the folder too: pages of other models have the same keys for the same tokens."""
    return crc32(data.data, crc32(folder.name.encode() + key)).to_bytes(4)
