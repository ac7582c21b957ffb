"""The library of ``freedive serve``: downloads from a stand-in hub, quantised copies, cards, removal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving
from standin import StandIn

from freedive import machine
from freedive.checkpoint.quantize import FORMATS
from freedive.commands import library as local
from freedive.commands import models as commands
from freedive.commands import serve, served
from freedive.commands.library import LocalLibrary
from freedive.commands.serve import fetched
from freedive.errors import NotFound, Unavailable, UserError
from freedive.hub import cache, catalogue
from freedive.hub.catalogue import Entry
from freedive.model.speed import MachineSpeed
from freedive.server.library.line import Abandoned, Progress
from freedive.server.models import ModelEntry

SIZE = 1 << 21
NANO = catalogue.catalogue()["nano"]
KNOWN = Entry("known", "hf:owner/known", "A model of the tests", "llama", 1, 1, 0.002, "MIT")


@pytest.fixture(autouse=True)
def small_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue with one model of the hub and one of the package, and a machine that need not be measured."""
    for module in (catalogue, commands, served):
        monkeypatch.setattr(module, "catalogue", lambda: {"known": KNOWN, "nano": NANO})
    monkeypatch.setattr(serve, "KEPT_FREE_BYTES", 0)
    monkeypatch.setattr(local, "measure_machine", lambda threads, record_bytes: MachineSpeed(20e9, 1e9, 1e12))
    monkeypatch.setattr(machine, "available_memory", lambda: 16 * 10**9)


@pytest.fixture
def stored_known(hub: StandIn) -> StandIn:
    hub.repositories["owner/known"] = {"k-Q4_0.gguf": bytes(range(256)) * (SIZE >> 8)}
    return hub


@contextmanager
def server() -> Iterator[httpx.Client]:
    def fetch(name: str, progress: Progress) -> ModelEntry:
        entry = fetched({}, 1e12, name, progress)
        return replace(entry, load=lambda: EchoModel(name=entry.name))

    with (
        serving(EchoModel(), library=LocalLibrary({}, 0), fetch=fetch) as url,
        httpx.Client(base_url=f"{url}/app/library", timeout=20) as http,
    ):
        yield http


def model(http: httpx.Client) -> dict[str, Any]:
    return next(each for each in http.get("").json()["models"] if each["name"] == "known")


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def begin(http: httpx.Client) -> str:
    """Begins the download and returns the id of its job when a part has come."""
    id = str(http.post("/downloads", json={"model": "known"}).json()["id"])
    until(lambda: cache.partial_bytes(KNOWN.ref))
    return id


def test_a_download_is_continued_by_the_next_server_where_it_stopped(stored_known: StandIn) -> None:
    stored_known.pause_seconds = 0.02
    with server() as http:
        assert http.post(f"/jobs/{begin(http)}/stop").status_code == 200
    until(lambda: not any((cache.home() / "models").glob("*/freedive.json")) and cache.partial_bytes(KNOWN.ref))
    stored_known.pause_seconds = 0
    with server() as http:
        assert 0 < model(http)["partial_bytes"] < SIZE
        assert not model(http)["bytes_here"]
        http.post("/downloads", json={"model": "known"})
        until(lambda: model(http)["served"])
        assert (model(http)["bytes_here"], model(http)["partial_bytes"]) == (SIZE, 0)
    assert (stored_known.downloads[-1][1] or "").startswith("bytes=")


def test_a_cancelled_download_leaves_no_file(stored_known: StandIn) -> None:
    stored_known.pause_seconds = 0.02
    with server() as http:
        assert http.delete(f"/jobs/{begin(http)}").status_code == 200
        assert model(http)["partial_bytes"] == 0
    assert not [path for path in (cache.home() / "models").rglob("*") if path.is_file()]


def test_a_downloaded_model_is_removed(stored_known: StandIn) -> None:
    with server() as http:
        http.post("/downloads", json={"model": "known"})
        until(lambda: model(http)["served"])
        assert http.post("/discard", json={"model": "known"}).json() == {"freed_bytes": 0}
        assert http.post("/remove", json={"model": "known"}).json()["freed_bytes"] >= SIZE
        assert (model(http)["served"], model(http)["bytes_here"]) == (False, 0)
        assert http.post("/remove", json={"model": "nano"}).status_code == 404


def failure(http: httpx.Client) -> str:
    """Returns why the download of the model fails."""
    http.post("/downloads", json={"model": "known"})
    with http.stream("GET", "/events") as response:
        for line in response.iter_lines():
            if '"failed"' in line:
                return line
    raise AssertionError


def test_no_space_and_no_network_are_said_in_words(stored_known: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as http:
        stored_known.refusals += [(503, {})] * 10
        assert "Try again later" in failure(http)
        stored_known.refusals.clear()
        monkeypatch.setattr(serve, "KEPT_FREE_BYTES", 1e15)
        assert "more than the free space" in failure(http)
        assert str(cache.home()) not in failure(http)


def test_a_quantised_copy_is_a_model_of_the_cache(hub: StandIn) -> None:
    library, progress = LocalLibrary({}, 0), Progress()
    assert library.formats == tuple(FORMATS)
    entry = library.quantize("nano", "nano", "i8", progress)
    assert entry.name == "quantized:nano-i8"
    assert 0 < progress.total <= progress.completed
    assert next(each for each in library.models() if each["name"] == entry.name)["removable"]
    copy = entry.load()
    copy.close()
    assert library.remove(entry.name)
    with pytest.raises(NotFound):
        library.remove(entry.name)


def test_a_quantisation_that_is_given_up_leaves_nothing(hub: StandIn) -> None:
    library, progress = LocalLibrary({}, 0), Progress(wanted=False)
    with pytest.raises(Abandoned):
        library.quantize("nano", "nano", "i8", progress)
    with pytest.raises(Unavailable, match="more than the free space"):
        LocalLibrary({}, 1e15).quantize("nano", "nano", "i8", Progress())
    assert not [path for path in (cache.home() / "models").rglob("*") if path.is_file()]


def test_cards_are_the_reports_of_plan_and_else_estimates(stored_known: StandIn, tmp_path: Path) -> None:
    library = LocalLibrary({}, 0)
    card = library.card("nano")
    assert card["memory"]["total"] == sum(card["memory"][part] for part in ("dense", "slots", "cache", "states")) + sum(
        card["memory"][part] for part in ("working", "process")
    )
    assert card["speed"]["worst"] > 0
    stored_known.refusals += [(503, {})] * 10
    estimate = library.card("known")
    assert "answered 503" in estimate["problem"]
    assert estimate["speed"]["worst"] > 0
    with pytest.raises(UserError) as error:
        library.card(str(tmp_path))
    assert str(tmp_path.parent) not in str(error.value)


def test_the_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = []
    monkeypatch.setattr(local, "measure_machine", lambda *how: times.append(how) or MachineSpeed(20e9, 1e9, 1e12))
    library = LocalLibrary({}, 0)
    for card in (partial(library.card, "nano"),) * 2:
        card()
    assert len(times) == 1
