"""Writes that survive a power cut: afterwards a file is either complete or unchanged."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def settle(temporary: Path, final: Path) -> None:
    """Renames a complete file to its final name; after a crash, the final name has the complete file or the old one."""
    flush(temporary)
    temporary.replace(final)
    with suppress(OSError):  # some file systems cannot; then a power cut may undo the rename
        flush(final.parent)


def flush(path: Path) -> None:
    """Writes the system's cached data of a file, or of a folder's entries, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
