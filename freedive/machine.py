"""Processors and memory that this process may use."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def physical_cores() -> int:
    """Returns the physical cores that affinity and container quota allow, without hyper-threads."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota() or len(cores)))


def _core(cpu: int) -> tuple[str, str]:
    """Returns package and core of a logical processor; if they are unknown, each processor is its own core."""
    topology = _CPUS / f"cpu{cpu}" / "topology"
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def _quota() -> int | None:
    """Returns the whole processors in the cgroup v2 quota, None without a quota."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def available_memory() -> int:
    """Returns the bytes that can be allocated without swapping, within a container's limit."""
    free = [_meminfo("MemAvailable")]
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        free.append(limit - used + int(stat["active_file"]) + int(stat["inactive_file"]))  # file cache
    except (OSError, ValueError, KeyError):
        pass
    return min(free)


def total_memory() -> int:
    """Returns the bytes of memory of this machine or container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int((_CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return total


def _meminfo(key: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
    except (OSError, StopIteration):
        return total_memory()


def peak_memory() -> int:
    """Returns the peak physical memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_name() -> str:
    """Returns the processor's model name, "unknown" if the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(names, "unknown")
