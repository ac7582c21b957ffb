"""Models that a server fetches for its clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from echo_model import EchoModel, serving
from patience import PATIENCE_S, wait_until
from standin import StandIn

from freedive.commands import serve, served
from freedive.commands.client_errors import private
from freedive.commands.serve import fetched, model_ids
from freedive.errors import Forbidden, NotFound, Unavailable, UserError
from freedive.hub import cache, catalogue
from freedive.hub.catalogue import Entry
from freedive.hub.sources import resolve
from freedive.server.library.line import Abandoned, Progress
from freedive.server.models import ModelEntry

LIMIT = 1e9


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports much free disk space, since the test machine may have little."""
    monkeypatch.setattr(serve, "KEPT_FREE_BYTES", 0)


def test_a_model_is_fetched_with_progress(hub: StandIn) -> None:
    hub.repositories["owner/name"] = {"m-Q4_0.gguf": b"w" * 1000}
    progress = Progress()
    model_entry = fetched({}, LIMIT, "hf:owner/name", progress)
    assert (model_entry.name, model_entry.num_bytes) == ("hf:owner/name", 1000)
    assert (progress.total, progress.completed) == (1000, 1000)


def test_clients_cannot_name_local_files(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"w")
    for name in (str(file), str(tmp_path), f"file:{file}", "~/m.gguf", "m.gguf", "pypi:their-own==1/secret.gguf"):
        with pytest.raises(NotFound, match="is not a model of the catalogue"):
            fetched({}, LIMIT, name, Progress())


def test_the_operators_token_is_used_for_models_of_the_catalogue_only(
    hub: StandIn, tokens: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories |= {"owner/name": {"m-Q4_0.gguf": b"w"}, "owner/known": {"k-Q4_0.gguf": b"w"}}
    entry = Entry("known", "hf:owner/known", "", "llama", 1, 1, 1, "MIT")
    monkeypatch.setattr(catalogue, "catalogue", lambda: {"known": entry})
    monkeypatch.setattr(served, "catalogue", lambda: {"known": entry})
    fetched({}, LIMIT, "hf:owner/name", Progress())
    assert fetched({}, LIMIT, "KNOWN", Progress()).name == "known"
    assert tokens == [None, "Bearer hf_of_the_test"]


@pytest.mark.parametrize(("status", "headers"), [(404, {}), (401, {"X-Error-Code": "GatedRepo"})])
def test_clients_are_not_told_of_a_token_that_would_not_be_used(
    hub: StandIn, status: int, headers: dict[str, str]
) -> None:
    hub.refusals = [(status, headers)]
    with pytest.raises(UserError, match="sk the operator to serve it") as caught:
        fetched({}, LIMIT, "hf:owner/name", Progress())
    assert "HF_TOKEN" not in str(caught.value)


def test_a_model_in_other_case_is_served_under_its_one_name(hub: StandIn) -> None:
    hub.repositories["owner/name"] = {"m-Q4_0.gguf": b"w"}
    names = [fetched({}, LIMIT, name, Progress()).name for name in ("hf:owner/name", "hf:OWNER/Name")]
    assert names == ["hf:owner/name"] * 2
    assert len(hub.downloads) == 1


def test_clients_get_a_fetched_model_only_if_they_could_fetch_it(hub: StandIn) -> None:
    hub.repositories |= {"owner/open": {"m-Q4_0.gguf": b"w"}, "owner/gated": {"m-Q4_0.gguf": b"w"}}
    for name in ("open", "gated"):
        resolve(f"hf:owner/{name}")
    assert fetched({}, LIMIT, "hf:owner/open", Progress()).name == "hf:owner/open"
    hub.gated.add("owner/gated")
    with pytest.raises(UserError, match="is not open to everyone"):
        fetched({}, LIMIT, "hf:owner/gated", Progress())
    assert resolve("hf:owner/gated")
    assert len(hub.downloads) == 2


def test_what_clients_fetch_has_a_limit_that_counts_what_was_interrupted(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories |= {f"owner/{name}": {"m-Q4_0.gguf": b"w" * 600_000} for name in "abc"}
    progress = Progress()
    monkeypatch.setattr(progress, "advance", lambda count: setattr(progress, "wanted", count == 0))
    with pytest.raises(Abandoned):
        fetched({}, 1e6, "hf:owner/a", progress)
    assert 0 < came() < 600_000
    fetched({}, 1e6, "hf:owner/b", Progress())
    with pytest.raises(Forbidden, match="models may take") as refused:
        fetched({}, 1e6, "hf:owner/c", Progress())
    assert str(cache.home()) not in str(refused.value)
    monkeypatch.setattr(serve, "KEPT_FREE_BYTES", 1e15)
    with pytest.raises(Unavailable, match="must stay free"):
        fetched({}, LIMIT, "hf:owner/c", Progress())


@pytest.fixture
def most_at_once() -> list[int]:
    """How many downloads ran when each of them began."""
    return []


@pytest.fixture
def pulled(hub: StandIn, most_at_once: list[int]) -> Iterator[str]:
    """A server whose clients fetch slowly: the first model takes ten seconds at least."""
    sizes = {"a": 32 << 20, "b": 1 << 20, "c": 1 << 20}
    hub.repositories |= {f"owner/{name}": {"m-Q4_0.gguf": b"w" * size} for name, size in sizes.items()}
    hub.pause_seconds = 0.02
    fetching: list[str] = []

    def fetch(name: str, progress: Progress) -> ModelEntry:
        fetching.append(name)
        most_at_once.append(len(fetching))
        try:
            model_entry = fetched({}, LIMIT, name, progress)
        finally:
            fetching.remove(name)
        return replace(model_entry, load=lambda: EchoModel(name=model_entry.name))

    with serving(EchoModel(), fetch=fetch) as url:
        yield url


def disconnect_midway(url: str, name: str, hub: StandIn) -> None:
    before = len(hub.downloads)
    with httpx.stream("POST", f"{url}/api/pull", json={"model": name}, timeout=PATIENCE_S) as answer:
        lines = answer.iter_lines()  # it would close the answer if it were dropped
        next(lines)
        wait_until(lambda: len(hub.downloads) > before and came())


def came() -> int:
    """Returns the bytes of unfinished downloads."""
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in cache.home().glob("models/*/partial/*"))
    return 0


def downloading() -> int:
    return sum(thread.name.startswith("freedive-pull") for thread in threading.enumerate())


def test_a_download_ends_with_its_client_and_is_resumed(hub: StandIn, pulled: str) -> None:
    disconnect_midway(pulled, "hf:owner/a", hub)
    wait_until(lambda: not downloading())
    assert cache.find("hf:owner/a") is None
    hub.pause_seconds = 0
    whole = {"model": "hf:owner/a", "stream": False}
    assert httpx.post(f"{pulled}/api/pull", json=whole, timeout=PATIENCE_S).status_code == 200
    assert (hub.downloads[-1][1] or "").startswith("bytes=")
    body = {"model": "hf:Owner/A", "prompt": "hi"}
    assert httpx.post(f"{pulled}/v1/completions", json=body).json()["model"] == "hf:owner/a"


def test_downloads_run_one_at_a_time_however_many_begin_and_leave(
    hub: StandIn, pulled: str, most_at_once: list[int]
) -> None:
    for _ in range(5):
        disconnect_midway(pulled, "hf:owner/a", hub)
    bodies = [{"json": {"model": f"hf:owner/{name}"}, "timeout": PATIENCE_S} for name in "bc"]
    threads = [threading.Thread(target=httpx.post, args=(f"{pulled}/api/pull",), kwargs=body) for body in bodies]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
    assert most_at_once == [1] * 7
    assert cache.find("hf:owner/b")
    assert cache.find("hf:owner/c")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/home/me/a.gguf is damaged", "a.gguf is damaged"),
        ("'~/my/models/a.gguf' and ../b/c.json, /d", "'a.gguf' and c.json, d"),
        ("see https://host.example/a/b for 3 tokens/s, 1 / 2", "see https://host.example/a/b for 3 tokens/s, 1 / 2"),
    ],
)
def test_errors_do_not_show_local_paths_to_clients(message: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(message, f"Look at {message}")

    with pytest.raises(UserError) as error:
        private(fail)()
    assert str(error.value) == f"{told}. Look at {told}"
    assert message in capsys.readouterr().err


def test_a_model_given_by_path_has_the_name_of_its_file(tmp_path: Path) -> None:
    for name in ("a/m.gguf", "b/m.gguf", "c/folder/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    paths = [str(tmp_path / name) for name in ("a/m.gguf", "b/m.gguf", "c/folder")]
    ids = model_ids(["smollm2", *paths])
    assert list(ids.values()) == ["smollm2", "m.gguf", "b/m.gguf", "folder"]
