"""A weight store counts the bytes of each part, and those that are in memory."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_models import float_tensor

from freedive.checkpoint.weight_store import WeightStore, open_store, pack_model, write_store
from freedive.native import _native

ROWS = 1 << 18


def tensors() -> dict[str, object]:
    rng = np.random.default_rng(0)
    shapes = {"embed": (ROWS, 64), "layers.0.attn.q": (64, 64), "norm": (64,)}
    shapes |= {f"layers.0.ffn.experts.{expert}.gate": (64, 64) for expert in range(4)}
    return {name: float_tensor(name, rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> WeightStore:
    path = tmp_path_factory.mktemp("store") / "model.fdv"
    write_store(path, tensors())
    return open_store(path)


def test_bytes_are_counted_by_part(store: WeightStore) -> None:
    assert store.bytes_by_part() == {"embedding": ROWS * 256, "experts": 4 * 64 * 256, "dense": 64 * 256 + 256}
    assert store.num_bytes == sum(store.bytes_by_part().values())
    assert store.path is not None
    assert pack_model(tensors()).path is None


def opened_cold(path: Path) -> WeightStore:
    """Writes a store that is then only on disk, and opens it. Skips the test on a file system in memory."""
    write_store(path, tensors())
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        pytest.skip(f"{kind} is not evicted")
    return open_store(path, proven=True)


def test_resident_bytes_are_those_that_were_read(tmp_path: Path) -> None:
    """A store that the system has written and evicted is only on disk until its weights are used."""
    opened = opened_cold(tmp_path / "model.fdv")
    before = opened.resident_bytes()
    for packed in opened.values():
        assert packed.data.sum() >= 0
    assert opened.resident_bytes() == opened.num_bytes
    assert before < opened.num_bytes // 2


def test_a_table_that_is_read_by_row_costs_a_page_a_row(tmp_path: Path) -> None:
    opened = opened_cold(tmp_path / "model.fdv")
    opened.expect_rows(("embed",))
    table = opened["embed"].data
    before = _native.resident_bytes(table)
    rows = range(ROWS // 4, ROWS, ROWS // 8)
    values = [table[256 * row : 256 * (row + 1)].copy() for row in rows]
    assert _native.resident_bytes(table) - before <= len(rows) * mmap.PAGESIZE
    expected = pack_model(tensors())["embed"].data
    assert all((value == expected[256 * row : 256 * (row + 1)]).all() for row, value in zip(rows, values, strict=True))


def test_a_load_into_memory_leaves_tables_on_disk(tmp_path: Path) -> None:
    opened = opened_cold(tmp_path / "model.fdv")
    before = _native.resident_bytes(opened["embed"].data)
    loaded = opened.without_mapping(("embed",))
    assert _native.resident_bytes(loaded["embed"].data) == before < loaded["embed"].data.nbytes // 2
    assert np.shares_memory(loaded["embed"].data, opened["embed"].data)
    assert not np.shares_memory(loaded["norm"].data, opened["norm"].data)
    for name, packed in opened.items():
        assert (loaded[name].data == packed.data).all()


def test_untouched_memory_is_not_resident() -> None:
    fresh = np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)
    assert _native.resident_bytes(fresh) < fresh.nbytes // 2
    fresh[: 32 << 20] = 1
    assert 32 << 20 <= _native.resident_bytes(fresh) <= fresh.nbytes
    fresh[:] = 1
    assert _native.resident_bytes(fresh) == fresh.nbytes


def test_part_of_a_page_counts_as_its_part() -> None:
    touched = np.ones(3 * 4096, np.uint8)
    assert _native.resident_bytes(touched[100:5000]) == 4900
    assert _native.resident_bytes(touched[:0]) == 0


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told to read ahead")
def test_weights_are_read_ahead_but_for_tables_that_are_read_by_row(tmp_path: Path) -> None:
    opened = opened_cold(tmp_path / "model.fdv")
    table = opened["embed"].data
    opened.read_ahead(("embed",))
    time.sleep(0.2)
    assert _native.resident_bytes(table) < table.nbytes // 2
    opened.read_ahead(())
    ends_at = time.monotonic() + 20
    while _native.resident_bytes(table) < table.nbytes:
        assert time.monotonic() < ends_at
        time.sleep(0.01)
