"""Downloads from hubs: complete and verified under the final name, or one clear error and no file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
from patience import PATIENCE_S, wait_until
from standin import StandIn

from freedive.errors import Forbidden, NotFound, Unavailable, UserError
from freedive.hub import cache, download, hubs
from freedive.hub.download_limits import DownloadLimits
from freedive.hub.sources import resolve

GGUF = random.Random(1).randbytes(3_000_000)
CONFIG = b'{"model_type": "llama"}'


@pytest.fixture
def gguf_hub(hub: StandIn) -> StandIn:
    hub.repositories["owner/name"] = {"a-Q4_K_M.gguf": GGUF}
    return hub


def nothing_final(home: Path) -> bool:
    """Returns whether no model file has its final name."""
    return not [path for path in home.glob("models/*/files/**/*") if path.is_file()]


def test_the_hubs_own_client_understands_the_standin(gguf_hub: StandIn, tmp_path: Path) -> None:
    code = """import huggingface_hub as hub, sys
(file,) = hub.HfApi().model_info("owner/name", files_metadata=True).siblings
print(file.rfilename, file.size, file.lfs.sha256)
hub.hf_hub_download("owner/name", file.rfilename, local_dir=sys.argv[1])"""
    environment = os.environ | {"HF_ENDPOINT": gguf_hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "client")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["a-Q4_K_M.gguf", str(len(GGUF)), hashlib.sha256(GGUF).hexdigest()]
    assert (tmp_path / "client" / "a-Q4_K_M.gguf").read_bytes() == GGUF


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_one_file_arrives_whole_and_is_fetched_once(gguf_hub: StandIn, home: Path, scheme: str) -> None:
    path = resolve(f"{scheme}:owner/name/a-Q4_K_M.gguf")
    assert path.name == "a-Q4_K_M.gguf"
    assert path.read_bytes() == GGUF
    assert path.is_relative_to(home)
    assert resolve(f"{scheme}:owner/name/a-Q4_K_M.gguf") == path
    assert len(gguf_hub.downloads) == 1


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_a_safetensors_repository_arrives_as_a_folder(hub: StandIn, scheme: str) -> None:
    wanted = {"config.json": CONFIG, "tokenizer.json": b"{}", "chat_template.jinja": b"x"}
    weights = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 1000 for i in (1, 2)}
    other = {"pytorch_model.bin": b"p", "onnx/model.onnx": b"o", "original/model.safetensors": b"s", "README.md": b"r"}
    hub.repositories["owner/name"] = wanted | weights | other
    folder = resolve(f"{scheme}:owner/name")
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != cache.MANIFEST
    } == wanted | weights


def test_the_manifest_records_what_was_fetched(gguf_hub: StandIn) -> None:
    resolve("hf:owner/name")
    (model,) = cache.stored()
    assert (model.ref, model.licence, model.size) == ("hf:owner/name", "apache-2.0", len(GGUF))
    assert model.files[0].sha256 == hashlib.sha256(GGUF).hexdigest()


def test_a_broken_connection_is_resumed_in_the_same_call(gguf_hub: StandIn) -> None:
    gguf_hub.cuts = [1_000_000, 500_000]
    assert resolve("hf:owner/name").read_bytes() == GGUF
    asked = [asked for _, asked in gguf_hub.downloads]
    assert asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_an_interrupted_download_is_resumed_by_a_later_call(
    gguf_hub: StandIn, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    gguf_hub.cuts = [2_000_000]
    with pytest.raises(Unavailable, match="goes on where it stopped"):
        resolve("hf:owner/name")
    assert nothing_final(home)
    assert resolve("hf:owner/name").read_bytes() == GGUF
    assert gguf_hub.downloads[-1][1] == "bytes=2000000-"


def test_a_server_without_ranges_restarts_cleanly(gguf_hub: StandIn) -> None:
    gguf_hub.ranges, gguf_hub.cuts = False, [1_000_000]
    assert resolve("hf:owner/name").read_bytes() == GGUF


def test_a_file_without_a_published_hash_starts_again(hub: StandIn) -> None:
    hub.repositories["owner/name"] = {"config.json": CONFIG * 100_000, "model.safetensors": b"w"}
    hub.cuts = []
    hub.downloads.clear()
    folder = cache.model_folder("hf:owner/name")
    (folder / cache.PARTIAL).mkdir(parents=True)
    download.partial_file(folder, "config.json").write_bytes(b"from another revision")
    assert (resolve("hf:owner/name") / "config.json").read_bytes() == CONFIG * 100_000
    assert all(asked is None for _, asked in hub.downloads)


def test_a_partial_file_of_another_revision_is_refused_by_its_hash(gguf_hub: StandIn, home: Path) -> None:
    folder = cache.model_folder("hf:owner/name")
    (folder / cache.PARTIAL).mkdir(parents=True)
    download.partial_file(folder, "a-Q4_K_M.gguf").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="SHA-256"):
        resolve("hf:owner/name")
    assert nothing_final(home)
    assert resolve("hf:owner/name").read_bytes() == GGUF


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_a_wrong_hash_is_refused_and_nothing_is_left(gguf_hub: StandIn, home: Path, scheme: str) -> None:
    gguf_hub.hashes["a-Q4_K_M.gguf"] = "0" * 64
    with pytest.raises(UserError, match=r"is damaged after the download: its SHA-256 .* fetch it again"):
        resolve(f"{scheme}:owner/name")
    assert not list(home.glob("models/*"))


def test_whole_files_of_an_interrupted_repository_are_not_fetched_twice(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 1_000_000 for i in (1, 2)}
    hub.repositories["owner/name"] = {"config.json": CONFIG} | shards
    hub.refusals = []
    hub.cuts = [1_000_000, 10]
    with pytest.raises(Unavailable):
        resolve("hf:owner/name")
    hub.downloads.clear()
    hub.cuts = []
    resolve("hf:owner/name")
    assert "model-00001-of-00002.safetensors" not in [path for path, _ in hub.downloads]


def test_a_temporary_server_fault_is_retried(gguf_hub: StandIn) -> None:
    real = download.download

    def refuse_once(*args: object) -> cache.StoredFile:
        gguf_hub.refusals = [(503, {}), (429, {})]
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "download", refuse_once)
        assert resolve("hf:owner/name").read_bytes() == GGUF


@pytest.mark.parametrize(
    ("status", "headers", "kind", "remedy"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, NotFound, "spelling"),
        (404, {}, NotFound, "spelling"),
        (401, {"X-Error-Code": "GatedRepo"}, UserError, "Accept its terms .* HF_TOKEN"),
        (403, {}, UserError, "HF_TOKEN"),
        (500, {}, Unavailable, "Try again later"),
    ],
)
def test_refusals_say_what_to_do(
    gguf_hub: StandIn, home: Path, status: int, headers: dict[str, str], kind: type[UserError], remedy: str
) -> None:
    gguf_hub.refusals = [(status, headers)]
    with pytest.raises(kind, match=remedy) as caught:
        resolve("hf:owner/name")
    assert "\n" not in str(caught.value)
    assert not list(home.glob("models/*"))


def test_an_answer_that_is_no_listing_is_one_line(hub: StandIn) -> None:
    hub.refusals = [(200, {"Content-Type": "text/html"})]
    with pytest.raises(Unavailable, match="not a listing"):
        resolve("hf:owner/name")


def test_no_network_is_one_line(hub: StandIn, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="Check the network"):
        resolve("hf:owner/name")
    assert not list(home.glob("models/*"))


def test_the_token_goes_to_the_hub_and_not_to_modelscope() -> None:
    from freedive.hub.hubs import HUBS

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_of_the_test")
        assert HUBS["hf"].headers() == {"Authorization": "Bearer hf_of_the_test"}
        assert HUBS["modelscope"].headers() == {}


def test_a_disk_too_small_is_refused_before_the_first_byte(gguf_hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 1_000_000))
    with pytest.raises(Unavailable, match=r"Free some space, or set FREEDIVE_HOME"):
        resolve("hf:owner/name")
    assert gguf_hub.downloads == []


def test_a_disk_that_fills_up_leaves_nothing(gguf_hub: StandIn, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(count: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = download.download
    monkeypatch.setattr(download, "download", lambda http, file, folder, advance: real(http, file, folder, full))
    with pytest.raises(Unavailable, match="The disk is full"):
        resolve("hf:owner/name")
    assert not list(home.glob("models/*"))


def pull_in_another_process(url: str, home: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_ENDPOINT": url, "FREEDIVE_HOME": str(home), "HF_TOKEN": "hf_of_the_test"}
    code = "from freedive.hub.sources import resolve; resolve('hf:owner/name')"
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)


def test_a_killed_process_leaves_nothing_under_the_final_name(gguf_hub: StandIn, home: Path) -> None:
    gguf_hub.pause_seconds = 0.05
    process = pull_in_another_process(gguf_hub.url, home)
    wait_until(lambda: any(path.stat().st_size for path in home.glob("models/*/partial/*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert nothing_final(home)
    gguf_hub.pause_seconds = 0
    assert resolve("hf:owner/name").read_bytes() == GGUF
    assert (gguf_hub.downloads[-1][1] or "").startswith("bytes=")


def test_processes_that_pull_at_once_share_one_download(gguf_hub: StandIn, home: Path) -> None:
    gguf_hub.pause_seconds = 0.01
    processes = [pull_in_another_process(gguf_hub.url, home) for _ in range(3)]
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0, 0]
    assert len(gguf_hub.downloads) == 1
    assert resolve("hf:owner/name", download=False).read_bytes() == GGUF


@pytest.mark.parametrize(
    "path", ["../evil-Q4_0.gguf", "/etc/evil-Q4_0.gguf", "a/../../evil-Q4_0.gguf", "..\\evil-Q4_0.gguf"]
)
@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_a_listing_cannot_name_places_outside(hub: StandIn, home: Path, scheme: str, path: str) -> None:
    hub.repositories["owner/name"] = {path: b"evil"}
    with pytest.raises(UserError, match="has no weights"):
        resolve(f"{scheme}:owner/name")
    assert hub.downloads == []
    assert not list(home.glob("models/*"))


@pytest.mark.parametrize("cut", [[], [1000]])
def test_a_repository_cannot_bring_a_manifest_of_ours(
    hub: StandIn, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: list[int]
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(b"not for clients to name")
    evil = {"ref": "hf:owner/name", "checkpoint": str(secret), "files": [], "licence": "", "revision": "", "date": ""}
    theirs = {cache.MANIFEST: json.dumps(evil).encode(), "decoder.json": b"{}"}
    hub.repositories["owner/name"] = theirs | {"config.json": CONFIG, "model.safetensors": b"w" * 100_000}
    hub.cuts = [100_000, len(CONFIG), *cut] if cut else []
    if cut:
        hub.repositories["owner/name"]["z.json"] = b"z" * 10_000
        with pytest.raises(Unavailable):
            resolve("hf:owner/name")
        assert cache.find("hf:owner/name") is None
    folder = resolve("hf:owner/name")
    assert folder.is_relative_to(home)
    assert not {path for path, _ in hub.downloads} & set(theirs)
    assert not {path.name for path in folder.iterdir()} & set(theirs)


@pytest.mark.parametrize("name", [cache.MANIFEST, "decoder.json", f"sub/{cache.MANIFEST}"])
def test_reserved_file_names_are_refused(hub: StandIn, name: str) -> None:
    hub.repositories["owner/name"] = {name: b"{}", "m-Q4_0.gguf": b"w"}
    with pytest.raises(NotFound, match="has no file"):
        resolve(f"hf:owner/name/{name}")


@pytest.mark.parametrize("change", [{"checkpoint": "/etc/passwd"}, {"checkpoint": "../x"}, {"checkpoint": "other"}])
def test_a_manifest_opens_nothing_but_its_own_files(gguf_hub: StandIn, change: dict[str, str]) -> None:
    resolve("hf:owner/name")
    manifest = cache.model_folder("hf:owner/name") / cache.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    assert cache.find("hf:owner/name") is None
    assert cache.stored() == []


def test_a_model_of_an_earlier_version_is_found_where_it_is(gguf_hub: StandIn) -> None:
    path = resolve("hf:owner/name")
    folder = cache.model_folder("hf:owner/name")
    shutil.move(path, folder / path.name)
    path.parent.rmdir()
    manifest = json.loads((folder / cache.MANIFEST).read_text())
    del manifest["layout"]
    (folder / cache.MANIFEST).write_text(json.dumps(manifest))
    assert resolve("hf:owner/name") == folder / path.name
    assert [model.ref for model in cache.stored()] == ["hf:owner/name"]
    assert len(gguf_hub.downloads) == 1
    assert cache.remove("hf:owner/name") >= len(GGUF)


def test_names_are_not_case_sensitive(gguf_hub: StandIn) -> None:
    path = resolve("hf:owner/name")
    gguf_hub.repositories["Owner/NAME"] = gguf_hub.repositories["owner/name"]
    assert resolve("hf:Owner/NAME") == path
    assert len(gguf_hub.downloads) == 1
    with pytest.raises(NotFound):
        resolve("hf:owner/name/A-Q4_K_M.gguf")


def test_a_file_larger_than_announced_is_not_taken(gguf_hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[Any] = []
    real = hubs.hugging_face

    def smaller(http: httpx.Client, repository: str) -> hubs.Listing:
        listing = real(http, repository)
        return replace(listing, files=tuple(replace(file, size=1_000_000) for file in listing.files))

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
        yield came.append

    monkeypatch.setitem(hubs.HUBS, "hf", replace(hubs.HUBS["hf"], ask=smaller))
    with pytest.raises(Unavailable, match="larger than the 1000000 bytes that were announced"):
        resolve("hf:owner/name", bar=bar)
    assert sum(came) <= 1_000_000
    assert not list(cache.home().glob("models/*"))


@pytest.mark.parametrize("size", [None, "1", -1, 1.5, True])
def test_a_listing_without_sizes_is_no_listing(
    gguf_hub: StandIn, monkeypatch: pytest.MonkeyPatch, size: object
) -> None:
    real = hubs.hugging_face

    def odd(http: httpx.Client, repository: str) -> hubs.Listing:
        listing = real(http, repository)
        return replace(listing, files=tuple(replace(file, size=size) for file in listing.files))

    monkeypatch.setitem(hubs.HUBS, "hf", replace(hubs.HUBS["hf"], ask=odd))
    with pytest.raises(Unavailable, match="is not a listing"):
        resolve("hf:owner/name")


def test_a_listing_without_end_is_no_listing(gguf_hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MAX_LISTING_BYTES", 100)
    with pytest.raises(Unavailable, match="is not a listing"):
        resolve("hf:owner/name")


def test_control_characters_in_names_are_not_printed(hub: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories["owner/name"] = {"a-Q4_0\x1b[2J.gguf": b"evil", "b-Q8_0.gguf": b"w"}
    assert resolve("hf:owner/name").name == "b-Q8_0.gguf"
    assert "\x1b[2J" not in capsys.readouterr().err


class Cancelled(Exception):
    """Raised when the client that requested the model is gone."""


def test_terms_decide_on_the_token_the_room_and_the_end(gguf_hub: StandIn, tokens: list[str | None]) -> None:
    with pytest.raises(Forbidden, match="models may take"):
        resolve("hf:owner/name", limits=DownloadLimits(max_bytes=1_000_000))
    with pytest.raises(Unavailable, match="must stay free"):
        resolve("hf:owner/name", limits=DownloadLimits(free_bytes=1e15))
    assert gguf_hub.downloads == []

    def leave() -> None:
        if gguf_hub.downloads:
            raise Cancelled

    with pytest.raises(Cancelled):
        resolve("hf:owner/name", limits=DownloadLimits(with_token=False, check=leave))
    assert cache.find("hf:owner/name") is None
    assert tokens == ["Bearer hf_of_the_test"] * 2 + [None]
    resolve("hf:owner/name", limits=DownloadLimits(max_bytes=len(GGUF)))
    gguf_hub.repositories["owner/other"] = {"b-Q4_0.gguf": b"w"}
    with pytest.raises(Forbidden, match="models may take"):
        resolve("hf:owner/other", limits=DownloadLimits(max_bytes=len(GGUF)))
