"""Folders of cached pages on disk: one for each model and code version, below one root, with one size limit for all."""

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
"""Age of an unfinished file at which nobody is writing it any more."""

TRIMMED = 0.9
"""Part of the limit that is kept when it is exceeded."""

_FOLDER = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
"""As :func:`freedive.hub.cache.pages_folder` names them."""
_PAGE = re.compile(r"([0-9a-f]{32})\.page")
_PARTIAL = re.compile(r"[0-9a-f]{32}\.[0-9]+-[0-9a-f]{8}\.partial")

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def page_name(key: bytes) -> str:
    """The name of the file that keeps the page of this key."""
    return f"{key.hex()}.page"


def page_keys(folder: Path) -> set[bytes]:
    """The keys of the pages in ``folder``: none where it is not there or not to be trusted."""
    try:
        check_private(folder)
        names = [_PAGE.fullmatch(name) for name in os.listdir(folder)]
    except OSError:
        return set()
    return {bytes.fromhex(name[1]) for name in names if name}


def make_private(folder: Path) -> None:
    """Make ``folder`` and what it is in, closed to others, for prompts are private. OSError where it is not."""
    folder.parent.mkdir(0o700, parents=True, exist_ok=True)
    folder.mkdir(0o700, exist_ok=True)
    check_private(folder)


def check_private(folder: Path) -> None:
    """OSError unless ``folder`` belongs to this user and nobody else may write in it: pages are read without doubt."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if state.st_uid != os.geteuid() or state.st_mode & OTHERS_WRITE:
        raise PermissionError(errno.EPERM, "others can write there")


def trim(root: Path, max_bytes: int) -> tuple[int, list[Path]]:
    """Delete the pages below ``root``, whoever wrote them, that are beyond the limit, least recently used first.

    The limit is ``max_bytes``, or half of what would be free without any pages. Returns what is still allowed to be
    written (in bytes, negative if nothing is), and the files that were deleted.
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
    """When each page below ``root`` was used last, and its size. What was never finished is deleted."""
    for folder in root.iterdir():
        if not _FOLDER.fullmatch(folder.name):
            continue
        with suppress(NotADirectoryError, FileNotFoundError):
            for path in folder.iterdir():
                with suppress(FileNotFoundError):  # another process was faster
                    state = path.stat()
                    if _PAGE.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                        yield state.st_mtime, state.st_size, path
                    elif _PARTIAL.fullmatch(path.name) and time.time() - state.st_mtime > ABANDONED_S:
                        path.unlink()
