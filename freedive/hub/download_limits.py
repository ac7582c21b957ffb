"""Limits of a download: disk space, and whether the user's access token may be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from freedive.errors import Forbidden, Unavailable
from freedive.hub import cache

MAX_FILES = 1000
"""Maximum number of files of a model."""


def never_stop() -> None:
    """Lets a download continue; the default of :attr:`DownloadLimits.check`."""


@dataclass(frozen=True)
class DownloadLimits:
    """The limits of one download.

    ``with_token`` allows the use of this user's access token. After the download, all models and partial downloads
    together may take at most ``max_bytes``, and ``free_bytes`` of the disk must stay free. ``check`` is called during
    the download; an exception that it raises ends the download.
    """

    with_token: bool = True
    max_bytes: float = float("inf")
    free_bytes: float = 0
    check: Callable[[], None] = never_stop

    def available_bytes(self, folder: Path) -> float:
        """Returns the number of bytes that may still be written to the ``folder`` of a model."""
        free = shutil.disk_usage(folder).free - self.free_bytes
        return min(free, self.max_bytes - num_bytes(cache.home() / "models"))

    def check_space(self, ref: str, size: int, folder: Path) -> None:
        """Checks, before the download, that ``size`` bytes of the model ``ref`` fit; partial downloads count as done.

        Raises Unavailable if the disk is too small, and Forbidden if all models would exceed ``max_bytes``.
        """
        missing = size - num_bytes(folder)
        if missing > shutil.disk_usage(folder).free - self.free_bytes:
            kept = f" without the {self.free_bytes / 1e9:.1f} GB that must stay free" if self.free_bytes else ""
            what = f"{ref} needs {missing / 1e9:.1f} GB, more than the free space of the disk{kept}"
            raise Unavailable(what, "Free some space, or set FREEDIVE_HOME to a folder on a larger disk")
        if missing > self.available_bytes(folder):
            what = f"{ref} has {size / 1e9:.1f} GB, and models may take {self.max_bytes / 1e9:.1f} GB together"
            raise Forbidden(what, "Ask the administrator of this server to fetch it, or to raise --pull-limit-gb")


def num_bytes(folder: Path) -> int:
    """Returns the total size of the files below ``folder``; other processes may create and delete files meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total


UNLIMITED = DownloadLimits()
"""The limits of a user of this machine: none."""
