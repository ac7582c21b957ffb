"""Processors and memory that this process may use."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from freedive import cgroups

_CPUS = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Returns the physical cores that affinity (which cpusets limit) and quotas allow, without hyper-threads."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core(cpu) for cpu in allowed}
    return max(1, min(len(cores), int(cgroups.cpu_quota() or len(cores))))


def _core(cpu: int) -> tuple[str, str]:
    """Returns package and core of a logical processor; if they are unknown, each processor is its own core."""
    topology = _CPUS / f"cpu{cpu}" / "topology"
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def available_memory() -> int:
    """Returns the bytes that can be allocated without swapping, within the limits of a container."""
    free, allowed = _meminfo("MemAvailable"), cgroups.free_memory()
    return free if allowed is None else min(free, allowed)


def total_memory() -> int:
    """Returns the bytes of memory of this machine or container."""
    total, limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), cgroups.memory_limit()
    return total if limit is None else min(total, limit)


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


def resident_memory() -> int:
    """Returns the physical memory of this process in bytes; its peak if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def cpu_name() -> str:
    """Returns the processor's model name, "unknown" if the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(names, "unknown")
