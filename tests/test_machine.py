"""The memory and threads that the process may use when control groups limit them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from freedive import cgroups, machine

V1 = Path("/sys/fs/cgroup/memory")
CPUSET = Path("/sys/fs/cgroup/cpuset")

Tree = Callable[..., None]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Returns a function that writes /proc/self/cgroup, mountinfo and the files of groups, all below ``tmp_path``."""
    monkeypatch.setattr(cgroups, "_PROC", tmp_path / "proc")
    (tmp_path / "proc").mkdir()

    def write(groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str]) -> None:
        """``mounts``: root, mount point below ``tmp_path``, and file system with its options (``cgroup rw,memory``)."""
        lines = []
        for number, (root, point, kind) in enumerate(mounts):
            name, options = kind.split(" ")
            place = f"{tmp_path}/{point}".replace(" ", "\\040")
            lines.append(f"{number} 1 0:{number} {root} {place} rw,relatime shared:{number} - {name} none {options}")
        (tmp_path / "proc" / "cgroup").write_text(groups + "\n")
        (tmp_path / "proc" / "mountinfo").write_text("\n".join(["1 1 8:1 / / rw - ext4 /dev/vda rw", *lines]) + "\n")
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")

    return write


V2 = [("/", "cg", "cgroup2 rw")]


def test_a_containers_memory_limit_counts_and_cached_files_do_not(tree: Tree) -> None:
    stat = "anon 50000\nactive_file 300000\ninactive_file 500000"
    files = {"cg/memory.max": "1000000", "cg/memory.current": "950000", "cg/memory.stat": stat}
    tree("0::/", V2, files)
    assert machine.available_memory() == 850_000
    assert machine.total_memory() == 1_000_000
    tree("0::/", V2, {"cg/memory.max": "max"})
    assert cgroups.memory_limit() is cgroups.free_memory() is None
    assert machine.available_memory() > 1_000_000
    tree("0::/", V2, {"cg/memory.high": "900000"})  # beyond it, the system slows the group down
    assert machine.total_memory() == 900_000


@pytest.mark.parametrize(("own", "above", "free"), [(500_000, 700_000, 400_000), (800_000, 600_000, 300_000)])
def test_the_tightest_of_nested_groups_counts(tree: Tree, own: int, above: int, free: int) -> None:
    files = {
        "cg/a/b/memory.max": str(own),
        "cg/a/b/memory.current": "100000",
        "cg/a/memory.max": str(above),
        "cg/a/memory.current": "300000",
        "cg/other/memory.max": "1",
    }
    tree("0::/a/b", V2, files)
    assert machine.total_memory() == min(own, above)
    assert machine.available_memory() == free


def test_version_1_counts_the_cache_of_the_groups_below(tree: Tree) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": "1000000",
        "memory/job/memory.usage_in_bytes": "900000",
        "memory/job/memory.stat": "active_file 1\ntotal_active_file 200000\ntotal_inactive_file 100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "5000000",
    }
    tree("4:memory:/job\n1:cpu,cpuacct:/", [("/", "memory", "cgroup rw,memory")], files)
    assert machine.total_memory() == 1_000_000
    assert machine.available_memory() == 400_000


def test_a_hybrid_machine_has_its_limits_in_version_1(tree: Tree) -> None:
    """Systemd's hybrid mode mounts version 2 without controllers beside the hierarchies of version 1."""
    mounts = [("/", "unified", "cgroup2 rw"), ("/", "with space", "cgroup rw,cpu,memory")]
    files = {
        "unified/job/cgroup.procs": "1",
        "with space/job/memory.limit_in_bytes": "700000",
        "with space/job/cpu.cfs_quota_us": "150000",
        "with space/job/cpu.cfs_period_us": "100000",
        "with space/cpu.cfs_quota_us": "-1",
        "with space/cpu.cfs_period_us": "100000",
    }
    tree("3:memory,cpu:/job\n0::/job", mounts, files)
    assert machine.total_memory() == 700_000
    assert cgroups.cpu_quota() == 1.5
    assert machine.physical_cores() == 1


@pytest.mark.parametrize(
    ("path", "root", "group"),
    [("/docker/abc", "/docker/abc", ""), ("/docker/abc/in", "/docker/abc", "in/"), ("/", "/../abc", "")],
    ids=["root of the container", "below it", "not shown by the mount"],
)
def test_a_mount_may_show_only_a_part_of_the_hierarchy(tree: Tree, path: str, root: str, group: str) -> None:
    tree(f"4:memory:{path}", [(root, "m", "cgroup rw,memory")], {f"m/{group}memory.limit_in_bytes": "600000"})
    assert machine.total_memory() == 600_000


def test_a_containers_quota_limits_the_threads(tree: Tree) -> None:
    tree("", [], {})
    cores = machine.physical_cores()
    assert cores >= 1
    for quota, expected in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", cores), ("", cores)):
        tree("0::/a", V2, {"cg/a/cpu.max": quota})
        assert machine.physical_cores() == expected
    tree("0::/a", V2, {"cg/a/cpu.max": "400000 100000", "cg/cpu.max": "250000 100000"})
    assert cgroups.cpu_quota() == 2.5


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_PROC", tmp_path)
    assert cgroups.memory_limit() is cgroups.free_memory() is cgroups.cpu_quota() is None
    assert 0 < machine.available_memory() <= machine.total_memory()


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Creates a group of version 1 with a group inside it, if this process may; removes both at the end."""
    outer = request.param / f"freedive-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        inner.mkdir(parents=True)
    except OSError:
        pytest.skip(f"this process cannot create groups in {request.param}")
    yield inner
    for folder in (inner, outer):
        with suppress(FileNotFoundError):
            folder.rmdir()


def run_in(group: Path, code: str) -> list[int]:
    """Returns the numbers that ``code`` prints in a process of ``group``."""
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
    command = [sys.executable, "-c", f"{enter}; from freedive import machine; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("group", [V1], indirect=True)
def test_the_limit_of_a_real_group_of_version_1(group: Path) -> None:
    (group.parent / "memory.limit_in_bytes").write_text(str(300 << 20))
    (group / "memory.limit_in_bytes").write_text(str(500 << 20))
    code = "print(machine.total_memory()); b = bytearray(64 << 20); print(machine.available_memory())"
    total, free = run_in(group, code)
    assert total == 300 << 20
    assert 100 << 20 < free < 236 << 20


@pytest.mark.parametrize("group", [CPUSET], indirect=True)
def test_the_affinity_covers_a_real_cpuset(group: Path) -> None:
    for folder in (group.parent, group):
        (folder / "cpuset.mems").write_text("0")
        (folder / "cpuset.cpus").write_text("0")
    assert run_in(group, "print(machine.physical_cores())") == [1]
