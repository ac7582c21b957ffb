"""The disk as a benchmark needs it: without cached files, and its speed."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from freedive.errors import UserError

BLOCK = 1 << 22
"""Bytes of a read, about an expert."""


def drop_caches() -> None:
    """Empties the system's cache of files. Raises UserError for users other than root."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise UserError(f"The file cache cannot be dropped: {error}", "Run this as root on Linux") from None


def direct_speed(file: Path, seconds: float = 2) -> float:
    """Returns the bytes/s at which one reader reads random blocks of ``file`` with O_DIRECT."""
    source, num_blocks = random.Random(0), file.stat().st_size // BLOCK
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:  # aligned, as O_DIRECT requires
            done, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < seconds:
                done += os.preadv(descriptor, [buffer], source.randrange(num_blocks) * BLOCK)
            return done / took
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def read_ahead(file: Path, kilobytes: int) -> Iterator[None]:
    """Sets how much the disk of ``file`` reads around a fault of a mapped file, and restores it at the end.

    0 leaves the system's setting. Raises UserError for users other than root.
    """
    number = file.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    # A partition has the queue of the disk, whose folder it is in.
    setting = next(path for path in (device / "queue", device.parent / "queue") if path.exists()) / "read_ahead_kb"
    before = setting.read_text()
    try:
        if kilobytes:
            setting.write_text(str(kilobytes))
        yield
    except PermissionError as error:
        raise UserError(f"The disk's read-ahead cannot be set: {error}", "Run this as root on Linux") from None
    finally:
        if kilobytes:
            setting.write_text(before)
