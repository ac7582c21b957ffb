"""Pages of the key-value cache on disk, so that they outlive the process.

A page is a file, named by its key: a checksum of key and content, then the content. It gets its name when it is whole.
Nothing waits for the disk to have it: what a crash of the machine leaves half-written fails its checksum.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from stat import S_ISREG
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

MAX_QUEUED = 256
"""Pages that may wait to be written; beyond them, new ones are not."""

REST_S = 60
"""Seconds without another attempt to write after one has failed."""

CLOSE_S = 2
"""Seconds that are left at the end for what waits to be written."""

TRIMMED = 0.9
"""Part of the limit that is kept when it is exceeded."""

ABANDONED_S = 60
"""Age of an unfinished file at which nobody is writing it any more."""

_NAME = re.compile(r"([0-9a-f]{32})\.page")


class _Job(NamedTuple):
    key: bytes
    page: int
    is_same: Callable[[], bool]


class PageStore:
    """Keeps rows of ``pages``, uint8 [num_pages, page_bytes], in ``folder``, which need not exist yet.

    Files in all folders beside it may take ``max_bytes`` together, or half of what would be free without them; those
    that were not used for longest go first. Other processes may use the folder at the same time. No fault of the
    disk is an error: nothing is found there, then, and nothing written for a while.
    """

    def __init__(self, folder: Path, pages: npt.NDArray[np.uint8], max_bytes: int) -> None:
        self.page_bytes = pages.shape[1]
        self._folder = folder
        self._pages = pages
        self._max_bytes = max_bytes
        self._partial = f"{os.getpid()}-{os.urandom(4).hex()}.partial"
        names = (_NAME.fullmatch(path.name) for path in folder.glob("*.page"))
        self._keys = {bytes.fromhex(name[1]) for name in names if name}
        self._total = self._limit = 0  # of bytes; measured after the first page that is written
        self._rests_until, self._ends_at = 0.0, float("inf")
        self._has_failed = False
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None  # begins with the first page that is to be written

    def __contains__(self, key: bytes) -> bool:
        """Whether the page is here, or on its way."""
        return key in self._keys

    def read(self, key: bytes, page: int) -> bool:
        """Fill row ``page`` with what is kept under ``key``. False, with zeros in it, if there is nothing whole."""
        path, data, checksum = self._path(key), self._pages[page], bytearray(4)
        with suppress(OSError), path.open("rb", buffering=0) as file:
            count = os.readv(file.fileno(), [checksum, data.data])
            if count == 4 + self.page_bytes and not file.read(1) and checksum == _checksum(key, data):
                with suppress(OSError):  # as good on a disk that is only to be read
                    os.utime(file.fileno())
                return True
        self._keys.discard(key)
        data[:] = 0
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return False

    def write(self, key: bytes, page: int, is_same: Callable[[], bool]) -> None:
        """Have row ``page`` kept under ``key``, soon, if it is not here yet.

        The row is read later, in place, and need not wait for that: only if ``is_same`` then says that it was not put
        to another use is it kept.
        """
        if key not in self._keys and self._queue.qsize() < MAX_QUEUED:
            self._keys.add(key)
            self._queue.put(_Job(key, page, is_same))
            if not self._thread:
                self._thread = threading.Thread(target=self._work, name="freedive-pages", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write what is waiting, as far as a moment suffices. May be called again."""
        self._ends_at = time.monotonic() + CLOSE_S
        self._queue.put(None)
        if self._thread:
            self._thread.join(CLOSE_S)

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.page"

    # From here on: the store's own thread.

    def _work(self) -> None:
        while (job := self._queue.get()) and time.monotonic() < self._ends_at:
            try:
                written = time.monotonic() >= self._rests_until and self._save(job)
            except OSError as error:
                written = False
                self._rest(error)
            if not written:
                self._keys.discard(job.key)

    def _save(self, job: _Job) -> bool:
        if not job.is_same():
            return False
        data, final = self._pages[job.page], self._path(job.key)
        temporary = final.with_suffix(f".{self._partial}")
        self._folder.mkdir(0o700, parents=True, exist_ok=True)  # prompts are private
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
        self._total += 4 + self.page_bytes
        if self._total > self._limit:
            self._trim()
        return True

    def _rest(self, error: OSError) -> None:
        self._rests_until = time.monotonic() + REST_S
        if not self._has_failed:
            log.warning("prefixes cannot be kept in %s: %s", self._folder, error.strerror)
        self._has_failed = True

    def _trim(self) -> None:
        """Measure what is here, by all processes, and delete what is too much."""
        root = self._folder.parent
        files = sorted(_files(root))
        self._total = sum(size for _, size, _ in files)
        self._limit = min(self._max_bytes, (self._total + shutil.disk_usage(root).free) // 2)
        if self._total <= self._limit:
            return
        for _, size, path in files:
            if self._total <= TRIMMED * self._limit:
                return
            path.unlink(missing_ok=True)
            self._total -= size
            if path.parent == self._folder:
                self._keys.discard(bytes.fromhex(path.stem))


def _checksum(key: bytes, data: npt.NDArray[np.uint8]) -> bytes:
    return crc32(data.data, crc32(key)).to_bytes(4)


def _files(root: Path) -> Iterator[tuple[float, int, Path]]:
    """When each page in the folders of ``root`` was used last, and its size. What was never finished is deleted."""
    for path in root.glob("*/*"):
        with suppress(FileNotFoundError):  # another process was faster
            stat = path.stat()
            if _NAME.fullmatch(path.name) and S_ISREG(stat.st_mode):
                yield stat.st_mtime, stat.st_size, path
            elif path.suffix == ".partial" and time.time() - stat.st_mtime > ABANDONED_S:
                path.unlink()
