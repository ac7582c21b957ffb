"""Folders of cached pages on disk: one for each model and code version in a common root, which has one size limit."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ABANDONED_S = 60
"""Seconds since its last change after which an unfinished file counts as abandoned and is deleted."""

TRIMMED = 0.9
"""When the size limit is exceeded, pages are deleted until this fraction of the limit is left."""

_FOLDER = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
"""Folder names that :func:`freedive.hub.cache.pages_folder` makes."""
_PAGE = re.compile(r"([0-9a-f]{32})\.page")
_PARTIAL = re.compile(r"[0-9a-f]{32}\.[0-9]+-[0-9a-f]{8}\.partial")

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def page_name(key: bytes) -> str:
    """Returns the file name of the page with this ``key``."""
    return f"{key.hex()}.page"


def page_keys(folder: Path) -> set[bytes]:
    """Returns the keys of the pages in ``folder``; none if the folder is missing or other users can write to it."""
    try:
        check_private(folder)
        names = [_PAGE.fullmatch(name) for name in os.listdir(folder)]
    except OSError:
        return set()
    return {bytes.fromhex(name[1]) for name in names if name}


def make_private(folder: Path) -> None:
    """Makes ``folder`` and its parents, readable by this user only, because prompts are private.

    Raises OSError if the folder belongs to another user or others can write to it.
    """
    folder.parent.mkdir(0o700, parents=True, exist_ok=True)
    folder.mkdir(0o700, exist_ok=True)
    check_private(folder)


def check_private(folder: Path) -> None:
    """Raises OSError unless ``folder`` belongs to this user and only this user can write to it.

    A checksum does not authenticate the content of a page, so every possible writer must be trusted.
    """
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if state.st_uid != os.geteuid() or state.st_mode & OTHERS_WRITE:
        raise PermissionError(errno.EPERM, "others can write there")


def trim(root: Path, max_bytes: int) -> tuple[int, list[Path]]:
    """Deletes the least recently used pages below ``root``, of all processes, if they exceed the limit.

    The limit is ``max_bytes``, or half of the disk space that would be free without any pages if that is less. Returns
    the number of bytes that may still be written (negative if none), and the files that were deleted.
    """
    files = sorted(_pages(root))
    total = sum(size for _, size, _ in files)
    limit = min(max_bytes, (total + shutil.disk_usage(root).free) // 2)
    deleted = []
    if total > limit:
        for _, size, path in files:
            if total <= TRIMMED * limit:
                break
            path.unlink(missing_ok=True)
            total -= size
            deleted.append(path)
    return limit - total, deleted


def _pages(root: Path) -> Iterator[tuple[float, int, Path]]:
    """Yields (time of last use, size in bytes, path) of each page below ``root``; deletes abandoned files."""
    for folder in root.iterdir():
        if not _FOLDER.fullmatch(folder.name):
            continue
        with suppress(NotADirectoryError, FileNotFoundError):
            for path in folder.iterdir():
                with suppress(FileNotFoundError):  # another process has deleted the file
                    state = path.stat()
                    if _PAGE.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                        yield state.st_mtime, state.st_size, path
                    elif _PARTIAL.fullmatch(path.name) and time.time() - state.st_mtime > ABANDONED_S:
                        path.unlink()
