"""Writes files that get their name when they are complete."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from freedive.arrays import Bytes
from freedive.disk import settle
from freedive.errors import Unavailable

OTHER_DISK = "set FREEDIVE_HOME to a folder on another disk"
"""What a user may do who cannot make room in the cache."""

_PARTIAL = re.compile(r".+\.(\d+)-\d+\.partial", re.DOTALL)


@contextmanager
def new_file(path: Path, what: str, num_bytes: int, otherwise: str) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of ``path`` at the end; on any exception nothing is left.

    Raises Unavailable, saying that ``what`` cannot be written, if the disk is closed or lacks ``num_bytes``: make room,
    or ``otherwise``.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    _sweep(path.parent)
    try:
        with temporary.open("wb") as file:
            yield file
        settle(temporary, path)
    except OSError as error:
        raise Unavailable(
            f"{what} cannot be written to {path.parent}: {error.strerror}",
            f"{_remedy(error, num_bytes)}, or {otherwise}",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _remedy(error: OSError, num_bytes: int) -> str:
    """What helps against ``error``: room, or the right to write."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Make the folder writable"
    return f"Make room for {max(1, round(num_bytes / 2**20)):,} MiB"


class HugePages:
    """Writes a file from front to back by aligned pages of 2 MiB, so that the system caches and maps it in such pages.

    Kernels that read it then spend less time on address translation.
    """

    SIZE = 1 << 21

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begin = 0
        self._page = np.zeros(self.SIZE, np.uint8)

    def write(self, offset: int, data: Bytes) -> None:
        """Put ``data`` at ``offset``, not before what was written last."""
        while data.size:
            while offset >= self._begin + self.SIZE:
                self.flush()
            begin = offset - self._begin
            part = data[: self.SIZE - begin]
            self._page[begin : begin + part.size] = part
            offset, data = offset + part.size, data[part.size :]

    def flush(self) -> None:
        """Write the page begun, filled up with zeros; the last call makes the file longer than what was put there."""
        self._file.write(self._page.data)
        self._begin += self.SIZE
        self._page[:] = 0


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed while they wrote have left."""
    for left in folder.glob("*.partial"):
        if match := _PARTIAL.fullmatch(left.name):
            try:
                os.kill(int(match[1]), 0)
            except (ProcessLookupError, OverflowError):
                left.unlink(missing_ok=True)
            except PermissionError:  # it is alive, and another user's
                continue
