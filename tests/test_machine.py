"""The memory and threads that the process may use when a container limits them."""

from __future__ import annotations

from pathlib import Path

import pytest

from freedive import machine


def test_a_containers_memory_limit_counts_and_cached_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = machine.available_memory()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("950000\n")
    (tmp_path / "memory.stat").write_text("anon 50000\nactive_file 300000\ninactive_file 500000\n")
    assert machine.available_memory() == 850_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory() == pytest.approx(whole, rel=0.5)


def test_a_containers_quota_limits_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    cores = machine.physical_cores()
    assert cores >= 1
    for quota, expected in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", cores), ("", cores)):
        (tmp_path / "cpu.max").write_text(quota)
        assert machine.physical_cores() == expected
