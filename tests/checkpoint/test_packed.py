"""The packed store: it returns what was packed, detects damage, and an incomplete one never has its final name."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights import KINDS, quantize, random_tensor, unpack

import freedive
from freedive.checkpoint import weight_store
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.packed import ALIGNMENT, PackedExperts, PackedTensor, pack, store_bytes
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.weight_store import DamagedStore, open_store, pack_model, write_store
from freedive.checkpoint.write import HugePages
from freedive.errors import Unavailable, UserError

ROOT = Path(__file__).parents[2]


def small() -> dict[str, Tensor]:
    """Returns a matrix and vectors of every float format: a store of a few pages."""
    rng = np.random.default_rng(0)
    vectors = {
        kind: quantize(kind, rng.standard_normal(37).astype(np.float32), kind) for kind in ("F32", "F16", "BF16")
    }
    return {"matrix": random_tensor("Q4_1", 33, 32), **vectors}


def assert_holds(path: Path, tensors: dict[str, Tensor]) -> None:
    store = open_store(path)
    assert list(store) == list(tensors)
    for name, tensor in tensors.items():
        packed, expected = store[name], pack(tensor)
        assert isinstance(packed, PackedTensor)
        assert (packed.format, packed.shape) == (expected.format, expected.shape)
        np.testing.assert_array_equal(packed.data, expected.data)


def test_every_format_comes_back_as_it_was_packed(tmp_path: Path) -> None:
    tensors = {kind: random_tensor(kind, 70, 512) for kind in KINDS} | small()
    tensors["a part of a block"] = random_tensor("F4G16", 70, 320)
    reported: list[int] = []
    write_store(tmp_path / "s.fdv", tensors, num_threads=2, advance=reported.append)
    assert_holds(tmp_path / "s.fdv", tensors)
    assert sum(reported) == store_bytes(tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["s.fdv"]


def test_tensors_are_mapped_on_page_boundaries(tmp_path: Path) -> None:
    write_store(tmp_path / "s.fdv", small())
    for tensor in open_store(tmp_path / "s.fdv").values():
        assert tensor.data.ctypes.data % ALIGNMENT == 0
        assert not tensor.data.flags.writeable
        assert not tensor.data.flags.owndata


def test_a_vector_becomes_float32(tmp_path: Path) -> None:
    values = np.array([1.5, -2, 0], np.float32)
    for kind in ("F32", "F16", "BF16"):
        tensor = pack(quantize("v", values, kind))
        assert (tensor.format, tensor.shape) == ("F32", (3,))
        np.testing.assert_array_equal(tensor.data.view(np.float32), values)


# --- experts and heads --------------------------------------------------------------------------------------------

NUM_EXPERTS = 3


def mixture() -> dict[str, Tensor]:
    """Returns a layer of experts with biases between two matrices; every part has its own format."""
    rng = np.random.default_rng(1)
    tensors = {"before": random_tensor("Q8_0", 5, 32)}
    for expert in range(NUM_EXPERTS):
        for part, kind, rows, width in (("gate", "Q4_0", 40, 64), ("up", "Q5_K", 40, 256), ("down", "F16", 64, 40)):
            name = f"layers.1.ffn.experts.{expert}.{part}"
            bias = rng.standard_normal(rows).astype(np.float32)
            tensors[name] = replace(random_tensor(kind, rows, width, seed=expert), name=name)
            tensors[f"{name}_bias"] = quantize(f"{name}_bias", bias, "BF16")
    return tensors | {"after": random_tensor("F32", 5, 32)}


def test_experts_become_records_of_whole_pages(tmp_path: Path) -> None:
    tensors = mixture()
    reported: list[int] = []
    write_store(tmp_path / "s.fdv", tensors, num_threads=2, advance=reported.append)
    assert sum(reported) == store_bytes(tensors)
    for store in (open_store(tmp_path / "s.fdv"), pack_model(tensors)):
        assert list(store) == ["before", "layers.1.ffn.experts", "after"]
        experts = store["layers.1.ffn.experts"]
        assert isinstance(experts, PackedExperts)
        assert (experts.count, len(experts.data)) == (NUM_EXPERTS, NUM_EXPERTS * experts.stride)
        assert list(experts.parts) == ["gate", "gate_bias", "up", "up_bias", "down", "down_bias"]
        for expert in range(NUM_EXPERTS):
            for part in experts.parts:
                expected = pack(tensors[f"layers.1.ffn.experts.{expert}.{part}"])
                packed = experts.part(expert, part)
                assert (packed.format, packed.shape) == (expected.format, expected.shape)
                np.testing.assert_array_equal(packed.data, expected.data)


def test_records_lie_as_they_are_read(tmp_path: Path) -> None:
    """Each record begins on a page, its parts begin on cache lines, and gaps are shorter than a line."""
    write_store(tmp_path / "s.fdv", mixture())
    experts = open_store(tmp_path / "s.fdv")["layers.1.ffn.experts"]
    assert isinstance(experts, PackedExperts)
    assert (experts.stride % ALIGNMENT, experts.data.ctypes.data % ALIGNMENT) == (0, 0)
    end = 0
    for name, (_, _, offset) in experts.parts.items():
        assert offset % 64 == 0
        assert 0 <= offset - end < 64
        end = offset + len(experts.part(0, name).data)
    assert 0 <= experts.stride - end < ALIGNMENT


def test_experts_of_a_layer_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    tensors = mixture()
    name = "layers.1.ffn.experts.2.up"
    tensors[name] = replace(random_tensor("Q6_K", 40, 256), name=name)
    with pytest.raises(UserError, match=rf"{name} is Q6_K, but in the layer's first expert it is Q5_K"):
        write_store(tmp_path / "s.fdv", tensors)
    assert list(tmp_path.iterdir()) == []


def test_one_record_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """The limit is a record and the page that is being written, for 64 experts of 1 MB each that are computed on
    demand."""
    shape = (512, 1024)

    def rows(begin: int, end: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.full((end - begin, 2 * shape[1]), 1, np.uint8)

    names = (f"layers.0.ffn.experts.{expert}.up" for expert in range(64))
    tensors = {name: Tensor(name, shape, "F16", rows) for name in names}
    tracemalloc.start()
    write_store(tmp_path / "s.fdv", tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < HugePages.SIZE + (4 << 20)


def test_pages_hold_what_was_put_there_and_zeros_between(tmp_path: Path) -> None:
    source, size = np.random.default_rng(0), HugePages.SIZE
    whole = np.zeros(6 * size, np.uint8)
    with (tmp_path / "f").open("w+b", buffering=0) as file:
        pages = HugePages(file)
        for begin, end in [(5, 9), (9, size), (size, size + 1), (size + 64, 3 * size + 7), (5 * size + 1, 6 * size)]:
            whole[begin:end] = source.integers(1, 256, end - begin)
            pages.write(begin, whole[begin:end])
        pages.flush()
        file.seek(0)
        assert file.read() == whole.tobytes()


def test_a_store_reaches_the_file_in_whole_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system uses huge pages only if writes have their size and alignment."""
    written = []
    flush = HugePages.flush

    def noted(pages: HugePages) -> None:
        written.append(pages._file.tell())
        flush(pages)
        assert pages._file.tell() == written[-1] + HugePages.SIZE

    monkeypatch.setattr(HugePages, "flush", noted)
    write_store(tmp_path / "s.fdv", {"w": random_tensor("F16", 2048, 1024), "v": random_tensor("F16", 32, 1024)})
    assert written == [0, HugePages.SIZE, 2 * HugePages.SIZE]


@pytest.mark.parametrize(("kind", "kept"), [("F32", "F32"), ("BF16", "BF16"), ("F16", "F16"), ("Q8_0", "F16")])
def test_heads_are_matrices_of_floats_one_after_another(kind: str, kept: str, tmp_path: Path) -> None:
    heads, rows, width = 3, 40, 64
    tensor = replace(random_tensor(kind, heads * rows, width), shape=(heads, rows, width))
    write_store(tmp_path / "s.fdv", {"k_b": tensor})
    for entry in (open_store(tmp_path / "s.fdv")["k_b"], pack(tensor)):
        assert isinstance(entry, PackedTensor)
        assert (entry.format, entry.shape) == (kept, tensor.shape)
        values = dequantize(tensor)
        if kept == "F16":
            values = values.astype(np.float16).astype(np.float32)
        for head, data in enumerate(np.split(entry.data, heads)):
            np.testing.assert_array_equal(unpack(PackedTensor(kept, (rows, width), data)), values[head])


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    write_store(tmp_path / "whole.fdv", small() | mixture())
    return (tmp_path / "whole.fdv").read_bytes()


def covered(path: Path) -> list[int]:
    """Returns offsets of bytes that matter: the whole header, and some of the tensors' bytes."""
    data = path.read_bytes()
    header = 32 + int.from_bytes(data[16:24], "little")
    places = list(range(header))
    for entry in open_store(path).values():
        parts = [entry.part(1, key) for key in entry.parts] if isinstance(entry, PackedExperts) else [entry]
        for part in parts:
            begin = data.index(part.data.tobytes())
            places += range(begin, begin + len(part.data), 7 if len(parts) == 1 else 997)
    return places


def test_a_changed_byte_is_detected_at_any_offset(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped.fdv"
    rng = np.random.default_rng(0)
    for place in covered(tmp_path / "whole.fdv"):
        changed = bytearray(whole)
        changed[place] ^= int(rng.choice([1, 0x80, 0xFF]))
        path.write_bytes(changed)
        with pytest.raises(DamagedStore):
            open_store(path)


def test_any_truncation_is_detected(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "short.fdv"
    for length in [*range(0, 64), *range(64, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedStore):
            open_store(path)


@pytest.mark.parametrize("data", [b"", b"GGUF" * 100, bytes(5000), b"freedive packed\n" + b"\xff" * 100])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.fdv").write_bytes(data)
    with pytest.raises(DamagedStore):
        open_store(tmp_path / "other.fdv")


def test_a_store_of_another_layout_is_foreign(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_store, "LAYOUT", "r16k4-0")
    with pytest.raises(DamagedStore, match="layout"):
        open_store(tmp_path / "whole.fdv")


def test_loading_repairs_a_damaged_store(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))

    def answer() -> str:
        with freedive.load(str(smollm2_path), threads=2, cache_tokens=256) as model:
            return "".join(model.complete("Once upon a time", max_tokens=4, temperature=0))

    expected = answer()
    (store,) = tmp_path.glob("packed/*/*.fdv")
    fresh = store.read_bytes()
    damaged = bytearray(fresh)
    damaged[len(fresh) // 2] ^= 1
    store.unlink()  # the old store is still mapped, so its file must not change
    store.write_bytes(damaged)
    assert answer() == expected
    assert store.read_bytes() == fresh
    assert set(store.parent.iterdir()) == {store, store.with_suffix(".json")}
    assert "Traceback" not in capsys.readouterr().err


# --- a full or read-only disk -------------------------------------------------------------------------------------


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Limits file sizes to ``num_bytes``, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 5000, 100_000, 1_000_000])
def test_a_full_disk_is_reported_and_leaves_no_file(room: int, tmp_path: Path) -> None:
    tensors = {f"m{index}": random_tensor("Q8_0", 512, 512, seed=index) for index in range(6)}
    with pytest.raises(Unavailable, match=r"cannot be written to .*Make room for [1-9][0-9,]* MiB"), largest_file(room):
        write_store(tmp_path / "s.fdv", tensors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_at_the_very_end(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_store_and_fail(tmp_path, os.strerror(number))


def test_a_store_and_its_name_are_on_the_disk_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flushed name, a power cut may restore the previous store, which was made from other files."""
    flushed: list[tuple[Path, bool]] = []
    store, real = tmp_path / "s.fdv", os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), store.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_store(store, small())
    assert [(path.suffix, exists) for path, exists in flushed] == [(".partial", False), ("", True)]
    assert flushed[-1][0] == tmp_path


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_read_only_folder_is_reported(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    write_store_and_fail(tmp_path, os.strerror(number))


def test_a_store_in_a_read_only_folder_is_used_after_it_was_copied_there(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy has other times than its description says; nothing new can be written beside it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    freedive.load(str(smollm2_path)).close()
    (store,) = tmp_path.glob("packed/*/*.fdv")
    os.utime(store, (0, 0))
    open_file = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *a, **k: (open_file if "w" not in mode else refuse)(path, mode, *a, **k)
    )
    monkeypatch.setattr(Path, "unlink", refuse)
    freedive.load(str(smollm2_path)).close()


def write_store_and_fail(folder: Path, words: str) -> None:
    with pytest.raises(Unavailable, match=f"{words}.*FREEDIVE_HOME"):
        write_store(folder / "s.fdv", small())
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_created_is_reported(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(Unavailable, match="FREEDIVE_HOME"):
        freedive.load(str(smollm2_path))


# --- concurrent and killed writers --------------------------------------------------------------------------------

WRITER = """
import sys
sys.path[:0] = ["tests", "tests/checkpoint"]
from pathlib import Path
from freedive.checkpoint.weight_store import write_store
from weights import random_tensor
def advance(count):
    print("written", flush=True)
    sys.stdin.readline()
write_store(Path(sys.argv[1]), {f"m{i}": random_tensor("Q8_0", 64, 64, seed=i) for i in range(3)}, advance=advance)
"""
"""A program that writes a store of three tensors; after each one it prints a line and waits for one."""

WRITTEN = {f"m{index}": random_tensor("Q8_0", 64, 64, seed=index) for index in range(3)}


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(path)]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options) as process:
        yield process


def one_written(process: subprocess.Popen[str]) -> None:
    """Waits until the writer has written one more tensor."""
    assert process.stdout
    assert process.stdout.readline() == "written\n"


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "s.fdv"
    for steps in range(3):
        with writer(path) as process:
            for _ in range(steps):
                one_written(process)
                go_on(process)
            one_written(process)
            process.send_signal(signal.SIGKILL)
        assert not path.exists()
    write_store(path, WRITTEN)
    assert_holds(path, WRITTEN)
    assert list(tmp_path.iterdir()) == [path], "what the killed writers left is gone"


def test_concurrent_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "s.fdv"
    with writer(path) as first, writer(path) as second:
        for _ in range(3):
            for process in (first, second):
                one_written(process)
            for process in (second, first):
                go_on(process)
        assert (first.wait(60), second.wait(60)) == (0, 0)
    assert_holds(path, WRITTEN)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.fdv"]


def test_concurrent_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, barrier = tmp_path / "s.fdv", threading.Barrier(3)
    errors: list[Exception] = []

    def meet(_: int) -> None:
        barrier.wait(60)

    def write() -> None:
        try:
            write_store(path, WRITTEN, advance=meet)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_holds(path, WRITTEN)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.fdv"]


def test_a_store_in_use_survives_its_replacement(tmp_path: Path) -> None:
    path = tmp_path / "s.fdv"
    write_store(path, WRITTEN)
    before = open_store(path)
    write_store(path, small())
    np.testing.assert_array_equal(unpack(before["m0"]), unpack(pack(WRITTEN["m0"])))
    assert_holds(path, small())
