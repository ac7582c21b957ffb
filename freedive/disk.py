"""Writes that survive a power cut: afterwards a file is either complete or unchanged."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def settle(temporary: Path, final: Path) -> None:
    """Give a whole file its final name, so that a crash leaves either all of it or nothing under that name."""
    flush(temporary)
    temporary.replace(final)
    with suppress(OSError):  # some file systems cannot; without it a power cut may bring back what was there before
        flush(final.parent)


def flush(path: Path) -> None:
    """Write what the system holds back of a file, or of a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
