"""The disk as a benchmark needs it: without cached files, and its speed."""

from __future__ import annotations

import mmap
import os
import random
import time
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
