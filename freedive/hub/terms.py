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
"""Files that a model may consist of."""


def go_on() -> None:
    """Nobody wants a download to end."""


@dataclass(frozen=True)
class Terms:
    """The limits of one download.

    ``with_token`` allows the access token of this user where the hub asks for one. After the download, all models and
    interrupted downloads together take at most ``max_bytes``, and ``free_bytes`` of the disk stay free. ``check`` is
    called during the download; an exception that it raises ends the download.
    """

    with_token: bool = True
    max_bytes: float = float("inf")
    free_bytes: float = 0
    check: Callable[[], None] = go_on

    def room(self, folder: Path) -> float:
        """The bytes that may still come into the ``folder`` of a model."""
        free = shutil.disk_usage(folder).free - self.free_bytes
        return min(free, self.max_bytes - num_bytes(cache.home() / "models"))

    def admit(self, ref: str, size: int, folder: Path) -> None:
        """Refuse before the first byte what cannot fit; what an interrupted call fetched counts as there."""
        missing = size - num_bytes(folder)
        if missing > shutil.disk_usage(folder).free - self.free_bytes:
            kept = f" beside {self.free_bytes / 1e9:.1f} GB that are kept free" if self.free_bytes else ""
            what = f"{ref} needs {missing / 1e9:.1f} GB, for which the disk has no room{kept}"
            raise Unavailable(what, "Free some space, or set FREEDIVE_HOME to a folder on a larger disk")
        if missing > self.room(folder):
            what = f"{ref} has {size / 1e9:.1f} GB, and models may take {self.max_bytes / 1e9:.1f} GB together"
            raise Forbidden(what, "Ask who runs this server to fetch it, or for a larger --pull-limit-gb")


def num_bytes(folder: Path) -> int:
    """What the files below ``folder`` take, while others may make and delete them."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total


OWN = Terms()
"""Those of somebody at this machine."""
