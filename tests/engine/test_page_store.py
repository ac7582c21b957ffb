"""Pages on disk: a page is read as it was written, or not at all; errors of the disk fail no request."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from patience import wait_until

from freedive.engine import page_folder, page_store
from freedive.engine.page_store import PageStore

PAGE_BYTES = 5000
FILE_BYTES = PAGE_BYTES + 4
AMPLE = 10**8
A, B = "a" * 16 + "-" + "1" * 16, "b" * 16 + "-" + "2" * 16
"""Folder names as the cache makes them."""
ROOT = Path(__file__).parents[2]


def key_of(number: int) -> bytes:
    return number.to_bytes(16)


def content(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, PAGE_BYTES, np.uint8)


def store_in(folder: Path, max_bytes: int = AMPLE, num_pages: int = 2) -> PageStore:
    return PageStore(folder, np.zeros((num_pages, PAGE_BYTES), np.uint8), max_bytes)


def put(folder: Path, *numbers: int, max_bytes: int = AMPLE) -> PageStore:
    """Writes pages with a store that is then closed."""
    pages = np.stack([content(number) for number in numbers])
    with closing(PageStore(folder, pages, max_bytes)) as store:
        for row, number in enumerate(numbers):
            store.write(key_of(number), row, lambda: True)
    return store


def found(folder: Path, *numbers: int) -> list[int]:
    """Returns those of ``numbers`` that a new store reads; wrong content fails the test."""
    result = []
    with closing(store_in(folder)) as store:
        for number in numbers:
            if key_of(number) in store and (data := store.load(key_of(number))) is not None:
                assert (data == content(number)).all()
                result.append(number)
    return result


def file_of(folder: Path, number: int) -> Path:
    return folder / f"{key_of(number).hex()}.page"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_fetched_pages_do_not_change_while_more_are_read(tmp_path: Path) -> None:
    put(tmp_path / A, 1, 2, 3)
    with closing(store_in(tmp_path / A)) as store:
        keys = [key_of(number) for number in (1, 2, 3)]
        views = [store.fetch(keys)]
        before = [dict(view) for view in views]
        while len(views[-1]) < len(keys):
            time.sleep(0.001)
            views.append(store.fetch(keys))
            before.append(dict(views[-1]))
        assert [sorted(view) for view in views] == [sorted(view) for view in before]
        assert all(view is not other for view, other in pairwise(views))


def test_a_process_reads_the_pages_of_another(tmp_path: Path) -> None:
    put(tmp_path / A, 1, 2, 3)
    assert found(tmp_path / A, 1, 2, 3, 4) == [1, 2, 3]
    assert found(tmp_path / B, 1) == []
    assert (tmp_path / A).stat().st_mode & 0o777 == 0o700
    assert names(tmp_path / A) == [file_of(tmp_path, number).name for number in (1, 2, 3)]


def test_an_existing_page_is_not_written_again(tmp_path: Path) -> None:
    put(tmp_path / A, 1)
    before = file_of(tmp_path / A, 1).stat()
    put(tmp_path / A, 1)
    assert file_of(tmp_path / A, 1).stat() == before


# --- damage -------------------------------------------------------------------------------------------------------


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "checksum alone": lambda data: data[:4],
    "long": lambda data: data + b"\0",
    "twice": lambda data: data * 2,
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: random.Random(0).randbytes(len(data)),
    "shifted": lambda data: data[1:] + data[:1],
    **{f"bit flipped at {place}": partial(flip, place=place) for place in (0, 3, 4, 2500, -1 % 5004)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_page_is_deleted(tmp_path: Path, damage: str) -> None:
    put(tmp_path / A, 1, 2)
    path = file_of(tmp_path / A, 1)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with closing(store_in(tmp_path / A)) as store:
        assert key_of(1) in store
        assert store.load(key_of(1)) is None
        assert key_of(1) not in store
    assert not path.exists()
    assert found(tmp_path / A, 1, 2) == [2]
    put(tmp_path / A, 1)
    assert found(tmp_path / A, 1, 2) == [1, 2]


def test_a_page_under_anothers_name_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / A, 1)
    file_of(tmp_path / A, 1).rename(file_of(tmp_path / A, 2))
    assert found(tmp_path / A, 1, 2) == []


def test_a_page_of_another_folder_is_not_read(tmp_path: Path) -> None:
    """A page of another model has the same key for the same tokens."""
    put(tmp_path / A, 1)
    (tmp_path / B).mkdir()
    file_of(tmp_path / A, 1).rename(file_of(tmp_path / B, 1))
    assert found(tmp_path / B, 1) == []


def test_foreign_files_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / A
    folder.mkdir()
    (folder / "notes.page").write_text("buy tea")
    (folder / f"{'x' * 32}.page").write_text("not hexadecimal")
    (tmp_path / "README").write_text("nor in a folder")
    file_of(folder, 3).mkdir()
    put(folder, 1, 2, max_bytes=FILE_BYTES * 3 // 2)
    assert found(folder, 1, 2, 3) == [2]
    assert {"notes.page", f"{'x' * 32}.page"} < set(names(folder))
    assert (tmp_path / "README").exists()


def test_a_file_that_vanishes_is_not_there(tmp_path: Path) -> None:
    put(tmp_path / A, 1)
    with closing(store_in(tmp_path / A)) as store:
        file_of(tmp_path / A, 1).unlink()
        assert store.load(key_of(1)) is None
        assert key_of(1) not in store


def test_old_unfinished_files_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / A
    put(folder, 1)
    for name, age in (("1-00000000", 3600), ("2-00000000", 1)):
        path = folder / f"{key_of(9).hex()}.{name}.partial"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    put(folder, 2)
    assert [name for name in names(folder) if "partial" in name] == [f"{key_of(9).hex()}.2-00000000.partial"]


# --- the limit ----------------------------------------------------------------------------------------------------


def age(folder: Path, **seconds: int) -> None:
    """Sets the time of last use of pages to ``seconds`` ago."""
    for number, ago in seconds.items():
        os.utime(file_of(folder, int(number[1:])), (time.time() - ago,) * 2)


def test_the_least_recently_used_page_is_deleted_first(tmp_path: Path) -> None:
    put(tmp_path / A, 1, 2, 3)
    put(tmp_path / B, 4)
    age(tmp_path / A, _1=400, _2=300, _3=200)
    age(tmp_path / B, _4=350)
    assert found(tmp_path / A, 1) == [1]  # reading counts as use
    put(tmp_path / A, 5, max_bytes=4 * FILE_BYTES)
    assert (found(tmp_path / A, 1, 2, 3, 5), found(tmp_path / B, 4)) == ([1, 3, 5], [])


def test_the_limit_holds_during_many_writes(tmp_path: Path) -> None:
    most = 0
    for first in range(0, 100, 5):
        put(tmp_path / (A, B)[first % 2], *range(first, first + 5), max_bytes=12 * FILE_BYTES)
        most = max(most, sum(path.stat().st_size for path in tmp_path.glob("*/*")))
    assert 10 * FILE_BYTES < most <= 12 * FILE_BYTES
    assert found(tmp_path / B, *range(95, 100)) == [*range(95, 100)]


def test_all_stores_together_keep_to_the_limit(tmp_path: Path) -> None:
    """Five models that are served at once, each with a store of its own, and a store of another process."""
    pages = np.zeros((1, PAGE_BYTES), np.uint8)
    stores = [PageStore(tmp_path / f"{index:016x}-{index:016x}", pages, 20 * FILE_BYTES) for index in range(5)]
    for number in range(100):
        stores[number % 5].write(key_of(number), 0, lambda: True)
    for store in stores:
        store.close()
    assert 15 <= len(list(tmp_path.glob("*/*.page"))) <= 20 + len(stores)
    put(tmp_path / A, 101, max_bytes=20 * FILE_BYTES)
    assert len(list(tmp_path.glob("*/*.page"))) <= 20


def test_large_limits_are_measured_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    trim = page_store.trim
    monkeypatch.setattr(page_store, "trim", lambda *args: measured.append(1) or trim(*args))
    put(tmp_path / A, *range(100), max_bytes=64 * 20 * FILE_BYTES)
    assert 5 <= len(measured) <= 7


@pytest.mark.parametrize("folder", ["downloads", A])
def test_files_of_others_stay_whatever_their_age(tmp_path: Path, folder: str) -> None:
    """FREEDIVE_PAGES may name a folder that other programs use too."""
    others = [tmp_path / folder / "film.mkv.partial", tmp_path / "downloads" / f"{'0' * 32}.page"]
    others.append(tmp_path / "downloads" / f"{'0' * 32}.1-00000000.partial")
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(FILE_BYTES))
        os.utime(path, (time.time() - 10**6,) * 2)
    put(tmp_path / B, *range(5), max_bytes=2 * FILE_BYTES)
    assert all(path.exists() for path in others)


def test_a_folder_that_others_can_write_in_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / A, 1)
    for mode in (0o777, 0o770):
        (tmp_path / A).chmod(mode)
        assert found(tmp_path / A, 1) == []
        put(tmp_path / A, 2, 3)
        assert len(names(tmp_path / A)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"prefixes cannot be kept in {tmp_path / A}: others can write there"
    ] * 2
    (tmp_path / A).chmod(0o700)
    assert found(tmp_path / A, 1) == [1]


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / A, 1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert found(tmp_path / A, 1) == []
    put(tmp_path / A, 2)
    assert len(names(tmp_path / A)) == 1


def test_a_link_in_place_of_the_folder_is_not_used(tmp_path: Path) -> None:
    put(tmp_path / B, 1)
    (tmp_path / A).symlink_to(tmp_path / B)
    assert found(tmp_path / A, 1) == []


def test_folders_are_made_for_this_user_alone(tmp_path: Path) -> None:
    put(tmp_path / "pages" / A, 1)
    for folder in (tmp_path / "pages", tmp_path / "pages" / A):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_half_of_the_free_disk_space_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=(10 - len(names(tmp_path / A))) * FILE_BYTES)

    monkeypatch.setattr(page_folder.shutil, "disk_usage", usage)
    for number in range(10):
        put(tmp_path / A, number)
        assert len(names(tmp_path / A)) <= 5
    assert len(names(tmp_path / A)) >= 4


def test_more_than_can_be_written_in_time_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_store, "MAX_QUEUED", 3)
    begin = threading.Event()
    with closing(store_in(tmp_path / A)) as store:
        for number in range(100):
            store.write(key_of(number), 0, lambda: begin.wait(60))
        assert 3 <= sum(key_of(number) in store for number in range(100)) <= 4  # three wait, and one may be written
        begin.set()
    assert 3 <= len(names(tmp_path / A)) <= 4


# --- disks that fail ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_once_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / A, 1)
    attempts = []

    def full(self: Path, target: Path) -> None:
        attempts.append(target)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        store = put(tmp_path / A, 2, 3, 4)
        assert len(attempts) == 1
        assert not any(key_of(number) in store for number in (2, 3, 4))
        patch.setattr(page_store, "BACKOFF_S", 0)
        put(tmp_path / B, 2, 3, 4)
        assert len(attempts) == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"prefixes cannot be kept in {tmp_path / name}: No space left on device" for name in (A, B)
    ]
    assert names(tmp_path / A) == [file_of(tmp_path, 1).name]
    assert found(tmp_path / A, 1) == [1]
    put(tmp_path / A, 2)
    assert found(tmp_path / A, 1, 2) == [1, 2]


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    with suppress(FileNotFoundError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            try:
                yield
            finally:
                subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("no file system can be mounted here")


def test_a_disk_that_really_is_full_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", 10 * 8192):
        put(tmp_path / "disk" / A, *range(4))
        (tmp_path / "disk" / "ballast").write_bytes(bytes(4 * 8192))
        with suppress(OSError), (tmp_path / "disk" / "rest").open("wb") as file:
            while True:
                file.write(bytes(4096))
        put(tmp_path / "disk" / A, *range(4, 8))
        assert found(tmp_path / "disk" / A, *range(8)) == [*range(4)]
        assert not any("partial" in name for name in names(tmp_path / "disk" / A))


def test_a_folder_that_cannot_be_created_is_only_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    put(tmp_path / "file" / A, 1, 2)
    assert "prefixes cannot be kept" in caplog.text
    assert len(caplog.records) == 1
    assert found(tmp_path / "file" / A, 1) == []


def test_a_file_that_cannot_be_touched_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / A, 1)

    def utime(file: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", utime)
    assert found(tmp_path / A, 1) == [1]


# --- several processes, and their ends ----------------------------------------------------------------------------

WRITER = """
import sys
sys.path[:0] = ["tests/engine", "tests"]
from test_page_store import *
folder, seed, rounds, begin, end = Path(sys.argv[1]), *map(int, sys.argv[2:])
source, pages = random.Random(seed), np.zeros((64, PAGE_BYTES), np.uint8)
print("ready", flush=True)
for _ in range(rounds):
    store = PageStore(folder, pages, 40 * FILE_BYTES if begin == 0 else AMPLE)
    for row in range(50):
        number = source.randrange(begin, end)
        if key_of(number) in store and (data := store.load(key_of(number))) is not None:
            assert (data == content(number)).all()
        else:
            pages[row] = content(number)
            store.write(key_of(number), row, lambda: True)
    store.close()
"""


def writer(folder: Path, *numbers: int) -> subprocess.Popen[str]:
    """Starts a process that writes and reads pages; the arguments are its seed, its rounds, and the pages."""
    command = [sys.executable, "-c", WRITER, str(folder), *map(str, numbers)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_files(folder: Path, count: int) -> None:
    wait_until(lambda: len(list(folder.glob("*.page"))) >= count)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    for process in [writer(tmp_path / A, seed, 15, 0, 60) for seed in range(2)]:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
    assert len(found(tmp_path / A, *range(60))) == len(names(tmp_path / A))
    assert 20 < len(names(tmp_path / A)) < 80


def test_a_writer_that_is_killed_leaves_nothing_damaged(tmp_path: Path) -> None:
    """Of twenty kills, about four come while a file is half-written."""
    folder = tmp_path / A
    put(folder, 999)
    source = random.Random(0)
    for kill in range(20):
        with writer(folder, kill, 1000, 1000, 10**9) as process:
            wait_for_files(folder, 3 * kill + 4)
            time.sleep(source.uniform(0, 0.04))
            process.send_signal(signal.SIGKILL)
        whole = [path for path in folder.glob("*.page") if path != file_of(folder, 999)]
        before = [int(path.stem, 16) for path in whole]
        assert sorted(found(folder, *before)) == sorted(before)
        assert found(folder, 999) == [999]
    assert len(before) > 50
