"""The speed of a disk: which modes are measured, which is chosen, and that it is remembered."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from freedive import disk_speed
from freedive.disk_speed import DiskSpeed, best, measure
from freedive.hub import disks

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.write_bytes(os.urandom(MIB) * 16)
    return path


def without_direct_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens files as a file system without O_DIRECT does, such as an older tmpfs."""
    real = os.open

    def open_buffered(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags)

    monkeypatch.setattr(disk_speed.os, "open", open_buffered)


def test_every_mode_reads_the_records(file: Path) -> None:
    speeds = measure(file, 300_000, mode_bytes=4 * MIB)
    modes = [(speed.direct, speed.readers) for speed in speeds]
    direct = [(True, 1), (True, 2), (True, 4)]
    buffered = [(False, 1), (False, 2), (False, 4)]  # one is left out where the system has read ahead
    assert [mode for mode in modes if mode[0]] in (direct, [])
    assert modes == [mode for mode in direct + buffered if mode in modes]
    assert all(1e5 < speed.bytes_per_second < 1e12 for speed in speeds)


def test_offsets_are_those_of_whole_records(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            return real(descriptor, buffers, offset, flags)
        read.append((offset, len(buffers[0])))
        return real(descriptor, [buffers[0][:4096]] if len(read) == 1 else buffers, offset)  # the first one is short

    monkeypatch.setattr(disk_speed.os, "preadv", preadv)
    without_direct_reads(monkeypatch)
    assert len(measure(file, MIB - 5, mode_bytes=4 * MIB)) == 3
    assert read[1] == (read[0][0] + 4096, MIB - 4096)  # the rest of a short read
    whole = [offset for offset, size in read if size == MIB]
    assert sorted(whole) == [place * MIB for place in sorted({offset // MIB for offset in whole})]  # none twice
    assert len(whole) == 12


def test_a_file_system_without_direct_reads_offers_buffered_ones(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_direct_reads(monkeypatch)
    assert [speed.direct for speed in measure(file, MIB, mode_bytes=4 * MIB)] == [False] * 3


def test_a_file_that_cannot_be_measured(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        measure(tmp_path / "missing", MIB)
    with pytest.raises(ValueError, match="smaller"):
        measure(file, 32 * MIB)


def test_the_best_mode_is_the_fastest_and_among_equals_the_simplest() -> None:
    slow, fast = DiskSpeed(True, 1, 1e9), DiskSpeed(False, 4, 2e9)
    assert best([slow, fast]) == fast
    assert best([fast, DiskSpeed(True, 2, 1.95e9), DiskSpeed(False, 1, 2e9)]) == DiskSpeed(True, 2, 1.95e9)
    assert best([DiskSpeed(True, 4, 2e9), DiskSpeed(True, 1, 1.95e9)]).readers == 1
    assert best([DiskSpeed(True, 4, 2e9), DiskSpeed(False, 1, 2.4e9)]).direct  # the page cache has its cost
    assert best([DiskSpeed(False, 1, 1e9), DiskSpeed(False, 2, 2e9)]).readers == 2


def test_pages_that_a_process_has_mapped_are_not_the_speed_of_the_disk(file: Path) -> None:
    if not any(speed.direct for speed in measure(file, MIB, mode_bytes=4 * MIB)):
        pytest.skip("this file system has no direct reads")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[offset] for offset in range(0, len(mapped), mmap.PAGESIZE))
        assert [speed.direct for speed in measure(file, MIB, mode_bytes=4 * MIB)] == [True] * 3


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sets an empty home; returns the record sizes that are measured, each at 1 GB/s."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(disks, "PROBE_BYTES", 2 * MIB)
    sizes: list[int] = []

    def measured(path: Path, record_bytes: int) -> list[DiskSpeed]:
        assert path.stat().st_size >= record_bytes
        sizes.append(record_bytes)
        return [DiskSpeed(True, 2, 1e9)]

    monkeypatch.setattr(disks, "measure", measured)
    return sizes


def test_a_disk_is_measured_once_for_each_size_of_records(file: Path, counted: list[int]) -> None:
    for record_bytes in (3_000_000, 4_000_000, 4_194_304, 900_000, 1_000_000):
        assert disks.disk_speed(file, record_bytes) == DiskSpeed(True, 2, 1e9)
    assert counted == [4 * MIB, MIB]
    assert disks.disk_speed_of_cache(4 * MIB) == DiskSpeed(True, 2, 1e9)  # the same disk
    assert len(counted) == 2


def test_a_disk_without_models_is_measured_with_a_file_that_is_deleted(counted: list[int], tmp_path: Path) -> None:
    disks.disk_speed_of_cache(MIB)
    assert counted == [MIB]
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "disks.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"KEY": 1}', '{"KEY": {"direct": true, "readers": 0}}'])
def test_a_damaged_memory_of_disks_is_made_again(file: Path, counted: list[int], text: str) -> None:
    disks.disk_speed(file, MIB)
    stored = disks.home() / "disks.json"
    key = next(iter(disks._table()))
    stored.write_text(text.replace("KEY", key))
    assert disks.disk_speed(file, MIB) == disks.disk_speed(file, MIB) == DiskSpeed(True, 2, 1e9)
    assert len(counted) == 2


def test_a_home_that_cannot_be_written_is_measured_each_time(
    file: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = file.parent / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("FREEDIVE_HOME", str(blocked))
    assert disks.disk_speed(file, MIB).readers == disks.disk_speed(file, MIB).readers == 2
    assert len(counted) == 2
