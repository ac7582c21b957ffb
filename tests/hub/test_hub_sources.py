"""Model references: their meaning, and the files that they choose."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin import StandIn

from freedive.disk import settle
from freedive.engine.sampling import Sampling
from freedive.errors import NotFound, Unavailable, UserError
from freedive.families.refused import REFUSED
from freedive.hub import cache, sources
from freedive.hub.catalogue import catalogue, entry_for
from freedive.hub.choose import choose
from freedive.hub.download import RemoteFile
from freedive.hub.sources import Address, parse, resolve


def offered(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, "", 1, None) for path in paths]


@pytest.mark.parametrize(
    ("ref", "meaning"),
    [
        ("hf:owner/name", Address("hf", "owner/name", None)),
        ("hf:owner/name/sub/file.gguf", Address("hf", "owner/name", "sub/file.gguf")),
        ("modelscope:Qwen/Qwen3-0.6B", Address("modelscope", "Qwen/Qwen3-0.6B", None)),
        ("pypi:pack-age==1.0.post1/a/b.gguf", Address("pypi", "pack-age==1.0.post1", "a/b.gguf")),
    ],
)
def test_an_address_says_where_and_what(ref: str, meaning: Address) -> None:
    assert parse(ref) == meaning
    assert str(meaning) == ref


@pytest.mark.parametrize(
    "ref",
    [
        "hf:",
        "hf:name",
        "hf:o/n/../x",
        "hf:../n",
        "hf:o/..",
        "pypi:p/x",
        "pypi:p==1",
        "pypi:-r==1/x",
        "pypi:p==1//x",
        "hf:o/n//x",
    ],
)
def test_a_bad_address_is_refused_with_the_right_form(ref: str) -> None:
    with pytest.raises(UserError, match=r"is not an address\. Write "):
        parse(ref)


def test_every_entry_of_the_catalogue_is_an_address_with_plausible_numbers() -> None:
    assert len(catalogue()) >= 30
    for name, entry in catalogue().items():
        place = parse(name)
        assert place.is_file() if isinstance(place, Path) else str(place) == entry.ref and place == parse(entry.ref)
        assert name == name.lower()
        assert 0 < entry.active <= entry.total
        assert 2 < entry.gigabytes * 8 / entry.total < 20, f"{name}: bits a parameter"
        assert Sampling(**entry.sampling)
        assert entry_for(name.upper()) is entry


def test_entries_that_cannot_run_are_refused_by_their_family() -> None:
    assert {name for name, entry in catalogue().items() if not entry.runs} == {"granite-4.0-h-tiny"}
    assert all(entry.runs != (entry.family in REFUSED) for entry in catalogue().values())


def test_a_model_that_cannot_run_is_refused_before_it_is_fetched(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue()["smollm2"].runs
    stranger = replace(catalogue()["olmoe-1b-7b"], family="no-such-family")
    monkeypatch.setattr(sources, "entry_for", lambda ref: stranger)
    with pytest.raises(UserError, match="cannot run olmoe-1b-7b yet"):
        resolve("olmoe-1b-7b")
    assert hub.downloads == []


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(NotFound, match=r"smollm2.*hf:owner/name"):
        parse("smolm2")
    with pytest.raises(NotFound, match="write hf:Qwen/Qwen3-8B"):
        parse("Qwen/Qwen3-8B")
    with pytest.raises(NotFound, match="no file or folder"):
        parse("./missing.gguf")


def test_a_local_path_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "m.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve("m.gguf") == Path("m.gguf")
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve("./smollm2") == Path("smollm2")
    assert isinstance(parse("smollm2"), Address)


def test_without_downloading_a_missing_model_is_named(hub: StandIn) -> None:
    with pytest.raises(NotFound, match="freedive pull hf:owner/name"):
        resolve("hf:owner/name", download=False)
    assert hub.downloads == []


@pytest.mark.parametrize(
    ("paths", "checkpoint"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf"], "m-Q4_K_M.gguf"),
        (["m-q8_0.gguf", "m-f16.gguf"], "m-q8_0.gguf"),
        (["m.BF16.gguf", "m_F16.gguf"], "m.BF16.gguf"),
        (["mmproj-Q4_0.gguf", "m-IQ2_XS.gguf", "m-Q8_0.gguf"], "m-Q8_0.gguf"),
        (["MTP/m-Q4_K_M.gguf", "mtp-m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"], "m-UD-Q4_K_M.gguf"),
        (["only-one.gguf", "README.md"], "only-one.gguf"),
        (["Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M/m-00002-of-00002.gguf"], "Q4_K_M/m-00001-of-00002.gguf"),
        (["m-Q4_0.gguf", "model.safetensors", "config.json"], "."),
    ],
)
def test_the_best_files_are_chosen(paths: list[str], checkpoint: str) -> None:
    assert choose("hf:o/n", offered(*paths), None).checkpoint == checkpoint


def test_all_parts_of_a_split_gguf_are_fetched() -> None:
    files = offered("m-Q4_0-00001-of-00002.gguf", "m-Q4_0-00002-of-00002.gguf", "m-Q8_0-00001-of-00001.gguf")
    assert choose("hf:o/n", files, None).files == tuple(files[:2])


def test_a_missing_file_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"hf:o/n/FILE with one of: a\.gguf, b\.gguf"):
        choose("hf:o/n", offered("b.gguf", "a.gguf"), "c.gguf")
    with pytest.raises(UserError, match=r"one of: m-Q1_0\.gguf, m-Q2_X\.gguf"):
        choose("hf:o/n", offered("m-Q2_X.gguf", "m-Q1_0.gguf"), None)
    with pytest.raises(UserError, match=r"must have model\*\.safetensors"):
        choose("hf:o/n", offered("pytorch_model.bin"), None)


@given(st.text(st.sampled_from("a./\\\0~"), max_size=12))
def test_safe_paths_stay_inside(path: str) -> None:
    if cache.safe(path):
        assert (Path("/root/of/model") / path).resolve().is_relative_to("/root/of/model")
        assert "\0" not in path


def test_removing_a_model_removes_its_packed_stores(hub: StandIn) -> None:
    hub.repositories["owner/name"] = {"m-Q4_0.gguf": b"w" * 1000}
    path = resolve("hf:owner/name")
    store = cache.packed_path(path, "v1")
    store.write_bytes(b"p" * 500)
    assert cache.remove("hf:owner/name") == 1500
    assert not store.exists()
    assert not path.exists()
    assert cache.stored() == []


def test_a_packed_store_belongs_to_one_state_of_one_checkpoint(home: Path, tmp_path: Path) -> None:
    model, other = tmp_path / "m.gguf", tmp_path / "o.gguf"
    for path in (model, other):
        path.write_bytes(b"1")
    first = cache.packed_path(model, "v1")
    assert first == cache.packed_path(model, "v1")
    assert len({first, cache.packed_path(model, "v2"), cache.packed_path(other, "v1")}) == 3
    model.write_bytes(b"22")
    assert cache.packed_path(model, "v1") != first
    folder = tmp_path / "folder"
    folder.mkdir()
    empty = cache.packed_path(folder, "v1")
    (folder / "model.safetensors").write_bytes(b"1")
    assert cache.packed_path(folder, "v1") != empty


def test_a_damaged_manifest_counts_as_not_fetched(hub: StandIn) -> None:
    hub.repositories["owner/name"] = {"m-Q4_0.gguf": b"w"}
    resolve("hf:owner/name")
    (cache.model_folder("hf:owner/name") / cache.MANIFEST).write_text("{")
    assert cache.stored() == []
    assert resolve("hf:owner/name").exists()
    assert len(hub.downloads) == 1


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREEDIVE_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.home() == tmp_path / "freedive"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.home() == tmp_path / ".cache" / "freedive"


def test_the_error_for_a_user_without_a_home_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FREEDIVE_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match="Set FREEDIVE_HOME to a folder"):
        cache.home()


def test_locks_are_accessible_to_their_owner_alone(home: Path) -> None:
    with cache.locked("a"):
        (lock,) = home.glob("locks/*")
        assert lock.stat().st_mode & 0o777 == 0o600
        lock.chmod(0o644)
    with cache.locked("a"):
        assert lock.stat().st_mode & 0o777 == 0o600
    lock.unlink()
    lock.mkdir()
    with pytest.raises(Unavailable, match="FREEDIVE_HOME"), cache.locked("a"):
        pass


def test_a_rename_is_on_the_disk_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "final").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "partial").write_text("x")
    settle(tmp_path / "partial", tmp_path / "final")
    assert flushed == [(str(tmp_path / "partial"), False), (str(tmp_path), True)]
