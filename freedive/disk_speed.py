"""Measures how fast records of a file are read from disk, and which way of reading is the fastest."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

READERS = (1, 2, 4)
"""Numbers of threads that are tried. Drives differ: on one, a second reader cost a quarter of the speed."""

MODE_BYTES = 64 << 20
"""Bytes that each mode reads."""

MODE_SECONDS = 1.0
"""Time after which a mode ends on a slow disk."""

TIE = 0.95
"""Speeds above this share of the best count as equal to it."""

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20


@dataclass(frozen=True)
class DiskSpeed:
    """The speed of one mode: with or without the page cache (``direct``), and with a number of threads."""

    direct: bool
    readers: int
    bytes_per_second: float


def best(speeds: Sequence[DiskSpeed]) -> DiskSpeed:
    """Returns the fastest mode; among equals a direct one, which takes no page cache, with the fewest threads."""
    top = max(speed.bytes_per_second for speed in speeds)
    equal = [speed for speed in speeds if speed.bytes_per_second >= TIE * top]
    return min(equal, key=lambda speed: (not speed.direct, speed.readers))


def measure(path: Path, record_bytes: int, *, mode_bytes: int = MODE_BYTES) -> list[DiskSpeed]:
    """Returns the speed of each mode that the file system offers, reading records at random places of ``path``.

    A record has ``record_bytes``, rounded up to whole pages. No record is read twice if the file has enough. Raises
    OSError if the file cannot be read, and ValueError if it is smaller than a record.
    """
    size = -(-record_bytes // PAGE) * PAGE
    places = _places(path.stat().st_size // size)
    count = max(READERS[-1], -(-mode_bytes // size))
    speeds = []
    for direct in (True, False):
        for readers in READERS:
            offsets = [size * next(places) for _ in range(count)]
            try:
                speeds.append(DiskSpeed(direct, readers, _speed(path, direct, readers, size, offsets)))
            except OSError:
                if not direct:
                    raise
                break  # this file system has no direct reads
    return speeds


def _places(count: int) -> Iterator[int]:
    """Yields the numbers below ``count`` in random order, again and again."""
    if not count:
        raise ValueError("the file is smaller than a record")
    source = random.Random(0)
    while True:
        yield from source.sample(range(count), count)


def _speed(path: Path, direct: bool, readers: int, size: int, offsets: Sequence[int]) -> float:
    """Returns the bytes per second of reading ``size`` bytes at each of ``offsets``."""
    flags = os.O_RDONLY | (_direct_flag() if direct else 0)
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)  # pages that are not written yet cannot be dropped
        for offset in offsets:
            _drop(descriptor, offset, size)
        start = time.perf_counter()
        with ThreadPoolExecutor(readers) as pool:
            shares = [offsets[first::readers] for first in range(readers)]
            done = sum(pool.map(lambda share: _read(descriptor, size, share, start + MODE_SECONDS), shares))
        return done / (time.perf_counter() - start)
    finally:
        if not direct:
            for offset in offsets:
                _drop(descriptor, offset, size)
        os.close(descriptor)


def _direct_flag() -> int:
    """Returns the flag of reads past the page cache. Raises OSError where the system has none."""
    if flag := getattr(os, "O_DIRECT", 0):
        return int(flag)
    raise OSError("this system has no O_DIRECT")


def _read(descriptor: int, size: int, offsets: Sequence[int], end: float) -> int:
    """Reads records into memory at page boundaries until the time is ``end``; returns the number of bytes."""
    done = 0
    with mmap.mmap(-1, size) as memory, memoryview(memory) as view:
        for offset in offsets:
            filled = 0
            while filled < size:
                with view[filled:] as rest:
                    count = os.preadv(descriptor, [rest], offset + filled)
                if not count:
                    raise OSError("the file is shorter than before")
                filled += count
            done += size
            if time.perf_counter() > end:
                break
    return done


def _drop(descriptor: int, offset: int, size: int) -> None:
    """Removes bytes of a file from the page cache, where the system can, in whole huge pages."""
    if hasattr(os, "posix_fadvise"):
        begin, end = offset // HUGE_PAGE * HUGE_PAGE, -(-(offset + size) // HUGE_PAGE) * HUGE_PAGE
        with suppress(OSError):
            os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)
