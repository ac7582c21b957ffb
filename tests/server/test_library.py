"""Models in the page: jobs that belong to the server, loading, removal, and who may do what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_library import GB, EchoLibrary, listed
from echo_model import EchoModel, serving

from freedive.server import keys
from freedive.server.keys import Keys
from freedive.server.library import routes

PATH = "/app/library"


@pytest.fixture(autouse=True)
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    monkeypatch.setattr(routes, "TICK_S", 0.01)


@pytest.fixture
def library() -> EchoLibrary:
    here = listed("echo", bytes_here=GB, removable=True)
    return EchoLibrary({"echo": here, "new": listed("new"), "other": listed("other")})


@pytest.fixture
def http(library: EchoLibrary) -> Iterator[httpx.Client]:
    with (
        serving(EchoModel(), EchoModel("second"), library=library, fetch=library.fetch) as url,
        httpx.Client(base_url=url + PATH, timeout=20) as client,
    ):
        yield client


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"]["message"])


def until(http: httpx.Client, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Reads events until one fits, and returns it."""
    with http.stream("GET", "/events") as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and holds(now := json.loads(line[6:])):
                return dict(now)
    raise AssertionError("the events ended")


def job_runs(now: dict[str, Any]) -> bool:
    return any(job["state"] == "running" and job["completed"] for job in now["jobs"])


def model(http: httpx.Client, name: str) -> dict[str, Any]:
    return next(each for each in http.get("").json()["models"] if each["name"] == name)


def test_served_models_come_first_and_then_those_that_can_be_had(http: httpx.Client) -> None:
    whole = http.get("").json()
    assert [(each["name"], each["served"]) for each in whole["models"]] == [
        *[("echo", True), ("second", True), ("new", False), ("other", False)]
    ]
    assert whole["models"][0]["state"] == "loaded"
    assert set(whole["may"]) == {"pull", "manage", "files"}
    assert (whole["free_bytes"], whole["formats"]) == (50 * GB, ["i4g64", "i8"])


def test_a_download_goes_on_without_a_reader_and_the_model_is_served(http: httpx.Client, library: EchoLibrary) -> None:
    job = post(http, "/downloads", model="new")
    assert (job["kind"], job["model"], job["error"]) == ("download", "new", "")
    [running] = until(http, job_runs)["jobs"]
    assert (running["id"], running["total"], running["completed"]) == (job["id"], 2 * GB, GB)
    assert post(http, "/downloads", model="new")["id"] == job["id"]
    library.go.set()
    assert until(http, lambda now: not now["jobs"])["states"]["new"] == "asleep"
    assert model(http, "new")["served"]


def test_a_paused_download_keeps_what_it_has_and_is_continued(http: httpx.Client, library: EchoLibrary) -> None:
    job = post(http, "/downloads", model="new")
    until(http, job_runs)
    post(http, f"/jobs/{job['id']}/stop")
    assert until(http, lambda now: True)["jobs"] == []
    deadline = time.monotonic() + 10
    while not model(http, "new")["partial_bytes"]:
        assert time.monotonic() < deadline
    library.go.set()
    post(http, "/downloads", model="new")
    until(http, lambda now: "new" in now["states"])


def test_a_cancelled_download_leaves_nothing(http: httpx.Client, library: EchoLibrary) -> None:
    library.known["new"]["partial_bytes"] = 7
    job = post(http, "/downloads", model="new")
    until(http, job_runs)
    assert "being worked on" in error(http.post("/discard", json={"model": "new"}), 400)
    assert http.delete(f"/jobs/{job['id']}").status_code == 200
    assert "has ended" in error(http.delete(f"/jobs/{job['id']}"), 404)
    assert post(http, "/discard", model="new").keys() == {"freed_bytes"}


def test_downloads_wait_in_line(http: httpx.Client, library: EchoLibrary) -> None:
    first, second = (post(http, "/downloads", model=name) for name in ("new", "other"))
    now = until(http, job_runs)
    assert [(job["id"], job["state"]) for job in now["jobs"]] == [(first["id"], "running"), (second["id"], "waiting")]
    post(http, f"/jobs/{first['id']}/stop")
    until(http, lambda now: [job["id"] for job in now["jobs"] if job["state"] == "running"] == [second["id"]])
    library.go.set()
    until(http, lambda now: "other" in now["states"])
    assert library.started == ["new", "other"]


def test_a_failed_download_says_why_until_it_is_tried_again(http: httpx.Client, library: EchoLibrary) -> None:
    library.fails = "The hub cannot be reached"
    library.go.set()
    post(http, "/downloads", model="new")
    [job] = until(http, lambda now: any(job["error"] for job in now["jobs"]))["jobs"]
    assert (job["state"], job["error"]) == ("failed", "The hub cannot be reached. Check the network")
    library.fails = ""
    post(http, "/downloads", model="new")
    assert until(http, lambda now: "new" in now["states"] and not now["jobs"])


def test_a_model_is_quantised_and_served(http: httpx.Client, library: EchoLibrary) -> None:
    assert "Choose one of i4g64, i8" in error(http.post("/quantized", json={"model": "echo", "format": "i5"}), 400)
    job = post(http, "/quantized", model="echo", format="i8")
    assert (job["kind"], job["format"]) == ("quantize", "i8")
    library.go.set()
    until(http, lambda now: "quantized:echo-i8" in now["states"])


def test_models_are_loaded_and_unloaded(http: httpx.Client) -> None:
    assert post(http, "/unload", model="echo")["states"] == {"echo": "asleep", "second": "loaded"}
    assert post(http, "/load", model="echo")["states"]["echo"] == "loaded"


def test_a_model_in_memory_and_the_last_one_are_not_removed(http: httpx.Client, library: EchoLibrary) -> None:
    assert "Unload it first" in error(http.post("/remove", json={"model": "echo"}), 400)
    post(http, "/unload", model="echo")
    assert post(http, "/remove", model="echo") == {"freed_bytes": GB}
    assert not model(http, "echo")["served"]
    post(http, "/unload", model="second")
    assert "only model" in error(http.post("/remove", json={"model": "second"}), 400)
    for name in ("/etc/passwd", "hf:owner/name"):
        assert "no model" in error(http.post("/remove", json={"model": name}), 404)
        assert "no model" in error(http.get("/card", params={"model": name}), 404)


def test_the_card_is_of_the_model_that_was_asked_for(http: httpx.Client) -> None:
    card = http.get("/card", params={"model": "new"}).json()
    assert (card["model"], card["speed"]["worst"]) == ("new", 6.5)


def test_a_key_without_rights_sees_what_is_served_and_changes_nothing(library: EchoLibrary) -> None:
    secret = keys.create("ann")
    with (
        serving(EchoModel(), keys=Keys(), library=library, fetch=library.fetch) as url,
        httpx.Client(base_url=url + PATH, headers={"Authorization": f"Bearer {secret}"}) as http,
    ):
        assert [each["name"] for each in http.get("").json()["models"]] == ["echo"]
        assert http.get("").json()["may"] == []
        assert "free_bytes" not in http.get("").json()
        body = {"model": "new", "format": "i8"}
        for path in ("/downloads", "/discard", "/remove", "/unload"):
            assert "Ask its operator" in error(http.post(path, json={"model": "new"}), 403)
        assert error(http.post("/quantized", json=body), 403)
        assert error(http.get("/card", params={"model": "new"}), 403)
        assert http.get("/card", params={"model": "echo"}).status_code == 200
        assert until(http, lambda now: True)["jobs"] == []
        assert httpx.get(f"{url}{PATH}").status_code == 401
    assert library.started == []


def test_pages_of_other_origins_may_not_use_the_library(http: httpx.Client) -> None:
    headers = {"Origin": "http://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    assert http.post("/downloads", json={"model": "new"}, headers=headers).status_code == 403


def test_the_end_of_the_server_ends_its_jobs(library: EchoLibrary) -> None:
    with serving(EchoModel(), library=library, fetch=library.fetch) as url:
        httpx.post(f"{url}{PATH}/downloads", json={"model": "new"})
        with httpx.Client(base_url=url + PATH) as http:
            until(http, job_runs)
    deadline = time.monotonic() + 10
    while not library.known["new"]["partial_bytes"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
