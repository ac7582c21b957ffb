"""Writes files that get their final name when they are complete."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from freedive.arrays import Bytes
from freedive.disk import settle
from freedive.errors import Unavailable

OTHER_DISK = "set FREEDIVE_HOME to a folder on another disk"
"""Remedy in an error message if the user cannot free disk space for the cache."""

_PARTIAL = re.compile(r".+\.(\d+)-\d+\.partial", re.DOTALL)


@contextmanager
def new_file(path: Path, what: str, num_bytes: int, otherwise: str) -> Iterator[BinaryIO]:
    """Opens a temporary file to write, and renames it to ``path`` at the end; deletes it after an exception.

    Raises Unavailable if ``what`` cannot be written. The remedy is to free ``num_bytes``, or ``otherwise``.
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
        with suppress(OSError):  # a read-only disk refuses this of a file that does not exist, too
            temporary.unlink()


def _remedy(error: OSError, num_bytes: int) -> str:
    """Returns the remedy for ``error``: to make the folder writable, or to free ``num_bytes``."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Make the folder writable"
    return f"Make room for {max(1, round(num_bytes / 2**20)):,} MiB"


class HugePages:
    """Writes a file from front to back in aligned pages of 2 MiB, so that the system caches and maps it in huge pages.

    Kernels that read the file then spend less time on address translation.
    """

    SIZE = 1 << 21

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begin = 0
        self._page = np.zeros(self.SIZE, np.uint8)

    def write(self, offset: int, data: Bytes) -> None:
        """Writes ``data`` at ``offset``, which must not be before the end of the previous data."""
        while data.size:
            while offset >= self._begin + self.SIZE:
                self.flush()
            begin = offset - self._begin
            part = data[: self.SIZE - begin]
            self._page[begin : begin + part.size] = part
            offset, data = offset + part.size, data[part.size :]

    def flush(self) -> None:
        """Writes the current page, padded with zeros; so the file can be longer than its data."""
        self._file.write(self._page.data)
        self._begin += self.SIZE
        self._page[:] = 0


def _sweep(folder: Path) -> None:
    """Deletes temporary files of processes that were killed while they wrote."""
    for left in folder.glob("*.partial"):
        if match := _PARTIAL.fullmatch(left.name):
            try:
                os.kill(int(match[1]), 0)
            except (ProcessLookupError, OverflowError):
                with suppress(OSError):
                    left.unlink()
            except PermissionError:  # the process is alive and belongs to another user
                continue
