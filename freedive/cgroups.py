"""The limits of memory and processor time that Linux control groups (cgroups, versions 1 and 2) set for this process.

A process is in one group of each hierarchy, and every group above it limits it, too. So each limit is read from all
groups between the process's own and the root of the mount, and the tightest one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class _Files:
    """The names of the files of a group that concern memory, in one version of the interface."""

    limits: tuple[str, ...]
    used: str
    caches: tuple[str, ...]
    """Lines of memory.stat: the file cache of the group and of those below it, which the system drops if needed."""


_MEMORY = {
    1: _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
    2: _Files(("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file")),
}


def memory_limit() -> int | None:
    """Returns the bytes of memory that the process and others of its groups may use together, None without a limit."""
    return min((limit for _, _, limit in _memory_groups()), default=None)


def free_memory() -> int | None:
    """Returns the bytes that the process can still allocate within its groups, None without a limit.

    The file cache counts as free.
    """
    return min((_headroom(version, folder, limit) for version, folder, limit in _memory_groups()), default=None)


def cpu_quota() -> float | None:
    """Returns the processors whose time the process may use, such as 1.5, None without a quota."""
    return min(filter(None, (_quota(version, folder) for version, folder in _groups("cpu"))), default=None)


def _memory_groups() -> Iterator[tuple[int, Path, int]]:
    """Yields version, folder and limit of each group that limits memory."""
    for version, folder in _groups("memory"):
        limits = [_number(folder / name) for name in _MEMORY[version].limits]
        known = [limit for limit in limits if limit is not None]
        if known:
            yield version, folder, min(known)


def _headroom(version: int, folder: Path, limit: int) -> int:
    files = _MEMORY[version]
    used = _number(folder / files.used) or 0
    lines = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    return max(0, limit - used + sum(int(lines.get(name, 0)) for name in files.caches))


def _quota(version: int, folder: Path) -> float | None:
    if version == 2:
        quota, _, period = _text(folder / "cpu.max").partition(" ")
    else:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Yields version and folder of each group of the process that can have files of ``controller``, its own first."""
    mounts = list(_mounts())
    for line in _text(_PROC / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        fitting = [mount for mount in mounts if mount.version == version and mount.has(controller)]
        inside = [mount for mount in fitting if PurePosixPath(path).is_relative_to(mount.root)]
        for mount in inside or fitting:
            # A group that this mount does not show is above its root, as in some containers.
            below = PurePosixPath(path).relative_to(mount.root) if inside else PurePosixPath()
            for part in (below, *below.parents):
                yield version, mount.point / part


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy, or a part of it: ``root`` is the group that is seen at ``point``."""

    version: int
    root: PurePosixPath
    point: Path
    options: tuple[str, ...]

    def has(self, controller: str) -> bool:
        """Returns whether the hierarchy can have this controller; version 2 is one hierarchy for all."""
        return self.version == 2 or controller in self.options


def _mounts() -> Iterator[_Mount]:
    """Yields the mounts of control groups; a line of mountinfo is described in proc_pid_mountinfo(5)."""
    for line in _text(_PROC / "mountinfo").splitlines():
        place, _, rest = line.partition(" - ")
        match rest.split(" "), place.split(" "):
            case [kind, _, options], [_, _, _, root, point, *_] if kind in ("cgroup", "cgroup2"):
                version = 2 if kind == "cgroup2" else 1
                yield _Mount(version, PurePosixPath(_plain(root)), Path(_plain(point)), tuple(options.split(",")))


def _plain(text: str) -> str:
    """Returns a path of mountinfo, where spaces and some other characters are octal (``\\040``)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _number(path: Path) -> int | None:
    """Returns the number in a file, or None for "max" and if there is no such file."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """Returns the text of a file without the final newline, or none if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
