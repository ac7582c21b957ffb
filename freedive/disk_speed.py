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

BUFFERED_GAIN = 1.25
"""How much faster buffered reads must be than direct ones: what they leave in the page cache displaces the code of
programs, which then waits for the disk too."""

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
PART = 256 << 10
"""The distance of the bytes of a record at which it is looked for in the page cache."""


@dataclass(frozen=True)
class DiskSpeed:
    """The speed of one mode: with or without the page cache (``direct``), and with a number of threads."""

    direct: bool
    readers: int
    bytes_per_second: float


def best(speeds: Sequence[DiskSpeed]) -> DiskSpeed:
    """Returns the fastest mode, among equals that with the fewest threads.

    A buffered mode must be much faster than every direct one.
    """
    top = {
        direct: max((s.bytes_per_second for s in speeds if s.direct is direct), default=0) for direct in (True, False)
    }
    direct = top[False] <= BUFFERED_GAIN * top[True]
    equal = [s for s in speeds if s.direct is direct and s.bytes_per_second >= TIE * top[direct]]
    return min(equal, key=lambda speed: speed.readers)


def measure(path: Path, record_bytes: int, *, mode_bytes: int = MODE_BYTES) -> list[DiskSpeed]:
    """Returns the speed of each mode that the file system offers, reading records at random places of ``path``.

    A record has ``record_bytes``, rounded up to whole pages. No record is read twice if the file has enough. Buffered
    modes are left out if there are direct ones and the page cache has all records that they would read. Raises OSError
    if the file cannot be read, and ValueError if it is smaller than a record.
    """
    size = -(-record_bytes // PAGE) * PAGE
    places = _places(path.stat().st_size // size)
    count = max(READERS[-1], -(-mode_bytes // size))
    speeds: list[DiskSpeed] = []
    for direct in (True, False):
        for readers in READERS:
            offsets = [size * next(places) for _ in range(count)]
            is_real = any(speed.direct for speed in speeds)  # else the page cache may be all there is, as in tmpfs
            try:
                if speed := _speed(path, direct, readers, size, offsets, cached=not is_real):
                    speeds.append(DiskSpeed(direct, readers, speed))
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


def _speed(path: Path, direct: bool, readers: int, size: int, offsets: Sequence[int], *, cached: bool) -> float:
    """Returns the bytes per second of reading ``size`` bytes at each of ``offsets``.

    What stays in the page cache, such as pages that a process has mapped, counts for buffered reads only if ``cached``.
    Returns 0 if nothing counts.
    """
    flags = os.O_RDONLY | (_direct_flag() if direct else 0)
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)  # pages that are not written yet cannot be dropped
        for offset in offsets:
            _drop(descriptor, offset, size)
        if not (direct or cached):
            offsets = [
                each for each in offsets if not any(_is_cached(descriptor, each + i) for i in range(0, size, PART))
            ]
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


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether the page cache has the byte at ``offset``; false if the system cannot tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _drop(descriptor: int, offset: int, size: int) -> None:
    """Removes bytes of a file from the page cache, where the system can, in whole huge pages."""
    if hasattr(os, "posix_fadvise"):
        begin, end = offset // HUGE_PAGE * HUGE_PAGE, -(-(offset + size) // HUGE_PAGE) * HUGE_PAGE
        with suppress(OSError):
            os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)
