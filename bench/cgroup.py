"""A cgroup that limits the memory of an engine, with its file cache and without swap (version 1 or 2; needs root)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from freedive.errors import UserError

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Version:
    """The files of one version: ``limits`` are those of :meth:`written`, in their order; ``peak`` holds the most bytes
    of memory so far."""

    folder: str
    limits: tuple[str, ...]
    no_swap: Mapping[str, int]
    peak: str

    def written(self, num_bytes: int) -> dict[str, int]:
        """Returns what limits memory to ``num_bytes``: file -> number."""
        return dict.fromkeys(self.limits, num_bytes) | dict(self.no_swap)


V1 = Version(
    "memory",
    # The second file counts swap, too; only kernels with swap accounting have it.
    ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    {"memory.swappiness": 0},
    "memory.max_usage_in_bytes",
)
V2 = Version("", ("memory.max",), {"memory.swap.max": 0}, "memory.peak")

OPTIONAL = ("memory.memsw.limit_in_bytes", "memory.swap.max")
"""Files that kernels without swap do not have."""

ENTER = 'echo $$ > "$0" && exec "$@"'
"""A shell script that moves itself into the group of a cgroup.procs file, and becomes the command that follows."""


@dataclass(frozen=True)
class MemoryGroup:
    """An existing group; see :func:`memory_group`."""

    path: Path
    version: Version

    def entering(self, *command: object) -> tuple[object, ...]:
        """Returns a command that runs ``command`` in the group, under the same process id."""
        return "sh", "-c", ENTER, self.path / "cgroup.procs", *command

    @property
    def peak(self) -> int:
        """The most bytes that the group has held at once, with its file cache."""
        return int((self.path / self.version.peak).read_text())


@contextlib.contextmanager
def memory_group(num_bytes: int, root: Path = ROOT) -> Iterator[MemoryGroup]:
    """Makes a group whose processes have ``num_bytes`` of memory and no swap; removes it when they have ended.

    Raises UserError if this system or user cannot.
    """
    version = V1 if (root / V1.folder / V1.peak).exists() else V2
    group = MemoryGroup(root / version.folder / f"freedive-bench-{os.getpid()}", version)
    try:
        if version is V2:
            (root / "cgroup.subtree_control").write_text("+memory")
        group.path.mkdir()
        for name, number in version.written(num_bytes).items():
            if name not in OPTIONAL or (group.path / name).exists():
                (group.path / name).write_text(str(number))
    except OSError as error:
        raise UserError(f"No memory cgroup can be made: {error}", "Run this as root on Linux") from None
    try:
        yield group
    finally:
        _remove(group.path)


def _remove(path: Path, patience_s: float = 10) -> None:
    """Removes the group. The kernel may hold it for a moment after its last process has ended."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
