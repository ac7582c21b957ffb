"""Fine-tuning from the page: what is refused, how a run is followed, cancelled and undone, and who may do it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_finetuning import PLAN, SAMPLE, EchoFinetuning
from echo_library import GB, EchoLibrary, listed
from echo_model import EchoModel, serving
from patience import wait_until

from freedive.server import keys
from freedive.server.finetunes import fields, routes
from freedive.server.finetunes.runs import MAX_POINTS, Curve
from freedive.server.keys import Keys

PATH = "/app/finetunes"
LINES = b'{"prompt": "Who are you?", "completion": "A diver."}\n'


@pytest.fixture(autouse=True)
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    monkeypatch.setattr(routes, "TICK_S", 0.01)


@pytest.fixture
def tuning() -> EchoFinetuning:
    return EchoFinetuning()


@pytest.fixture
def library() -> EchoLibrary:
    return EchoLibrary({name: listed(name, bytes_here=GB, removable=True) for name in ("echo", "tuned:diver")})


@pytest.fixture
def http(tuning: EchoFinetuning, library: EchoLibrary) -> Iterator[httpx.Client]:
    with (
        serving(EchoModel(), library=library, finetuning=tuning) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def body(data: bytes = LINES, **changes: Any) -> dict[str, Any]:
    sent = base64.b64encode(data).decode()
    return {"model": "echo", "name": "diver", "file": "a.jsonl", "base64": sent} | changes


def error(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"]["message"])


def begin(http: httpx.Client, **changes: Any) -> dict[str, Any]:
    response = http.post(PATH, json=body(**changes))
    assert response.status_code == 200, response.text
    return dict(response.json())


def until(http: httpx.Client, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Reads events until one fits, and returns it."""
    with http.stream("GET", f"{PATH}/events") as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and holds(now := json.loads(line[6:])):
                return dict(now)
    raise AssertionError("the events ended")


def half_done(now: dict[str, Any]) -> bool:
    return any(len(run["curve"]["trained"]) == 2 for run in now["runs"])


def test_an_estimate_says_what_it_takes_and_passes_the_settings_on(http: httpx.Client, tuning: EchoFinetuning) -> None:
    response = http.post(f"{PATH}/estimate", json=body(epochs=2, rank=4, learning_rate=1e-3))
    assert response.json() == PLAN
    [draft] = tuning.drafts
    assert (draft.data, draft.epochs, draft.rank, draft.learning_rate) == (LINES, 2, 4, 1e-3)
    assert (draft.base, draft.source, draft.name, draft.file) == ("echo", "echo", "diver", "a.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "tuned:../x is not a name for a model"),
        ({"name": ""}, "is not a name for a model"),
        ({"name": "a" * 65}, "at most 64"),
        ({"file": "a.pdf"}, "a.pdf is of a kind that is not read. Send one of .jsonl"),
        ({"file": "a.jsonl.gz"}, "is of a kind that is not read"),
        ({"base64": "no base64"}, "'base64' is not base64"),
        ({"data": b"\x1f\x8b123"}, "a.jsonl is compressed. Unpack it first"),
        ({"data": b"wrong"}, "a.jsonl, line 7 is not JSON"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    http: httpx.Client, changes: dict[str, Any], message: str
) -> None:
    assert message in error(http.post(f"{PATH}/estimate", json=body(**changes)))


@pytest.mark.parametrize(
    "changes", [{"rank": 0}, {"rank": 1000}, {"epochs": 0}, {"epochs": 1e9}, {"learning_rate": 1.0}, {"file": ""}]
)
def test_settings_are_within_limits(http: httpx.Client, changes: dict[str, Any]) -> None:
    assert error(http.post(PATH, json=body(**changes)), 400)


def test_a_large_file_is_refused(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_BYTES", 10)
    assert "a.jsonl is larger than" in error(http.post(PATH, json=body()))


def test_a_model_that_is_not_served_is_not_tuned(http: httpx.Client) -> None:
    assert "not served here" in error(http.post(PATH, json=body(model="/etc")), 404)


def test_a_run_goes_on_without_a_reader_and_its_model_is_served(http: httpx.Client, tuning: EchoFinetuning) -> None:
    run = begin(http)
    assert (run["name"], run["base"], run["file"]) == ("tuned:diver", "echo", "a.jsonl")
    [half] = until(http, half_done)["runs"]
    assert (half["state"], half["completed"], half["total"]) == ("running", 2, 4)
    assert half["curve"] == {"trained": [[1, 2.5], [2, 2.0]], "held_out": [[0, 3.0]]}
    assert (half["plan"], half["sample"]) == (PLAN, SAMPLE)
    assert half["id"] == run["id"]
    tuning.go.set()
    assert until(http, lambda now: now["tuned"] == ["tuned:diver"])
    whole = http.get(PATH).json()
    assert (whole["offered"], whole["missing"]) == (True, "")
    assert [(made["name"], made["sample"]["after"]) for made in whole["tuned"]] == [
        ("tuned:diver", "A diver, of course.")
    ]
    asked = {"model": "tuned:diver", "messages": [{"role": "user", "content": "hello"}]}
    answer = http.post("/v1/chat/completions", json=asked).json()
    assert answer["choices"][0]["message"]["content"] == "user: hello"


def test_a_name_is_given_once(http: httpx.Client, tuning: EchoFinetuning) -> None:
    begin(http)
    assert "There is a model tuned:Diver already" in error(http.post(PATH, json=body(name="Diver")))
    tuning.go.set()
    until(http, lambda now: now["tuned"])
    assert "already" in error(http.post(PATH, json=body()))
    begin(http, name="other")
    until(http, lambda now: "tuned:other" in now["tuned"])


def test_a_cancelled_run_makes_no_model(http: httpx.Client, tuning: EchoFinetuning) -> None:
    run = begin(http)
    until(http, half_done)
    assert http.delete(f"/app/library/jobs/{run['id']}").status_code == 200
    assert until(http, lambda now: not now["runs"])["tuned"] == []
    tuning.go.set()
    begin(http)
    until(http, lambda now: now["tuned"])


def test_runs_wait_in_line_and_a_base_in_use_is_not_removed(http: httpx.Client, tuning: EchoFinetuning) -> None:
    begin(http)
    begin(http, name="second")
    now = until(http, half_done)
    assert [run["state"] for run in now["runs"]] == ["running", "waiting"]
    http.post("/app/library/unload", json={"model": "echo"})
    assert "being worked on" in error(http.post("/app/library/remove", json={"model": "echo"}))
    tuning.go.set()
    until(http, lambda now: len(now["tuned"]) == 2)


def test_a_failed_run_says_why_until_it_is_dismissed(http: httpx.Client, tuning: EchoFinetuning) -> None:
    tuning.fails = "The memory is too small"
    tuning.go.set()
    run = begin(http)
    [failed] = until(http, lambda now: any(run["error"] for run in now["runs"]))["runs"]
    assert (failed["state"], failed["error"]) == ("failed", "The memory is too small. Choose a smaller model")
    http.delete(f"/app/library/jobs/{run['id']}")
    assert until(http, lambda now: not now["runs"])["tuned"] == []


def test_undo_removes_the_model_even_if_it_is_loaded(
    http: httpx.Client, tuning: EchoFinetuning, library: EchoLibrary
) -> None:
    tuning.go.set()
    begin(http)
    until(http, lambda now: now["tuned"])
    http.post("/app/library/load", json={"model": "tuned:diver"})
    assert http.post(f"{PATH}/undo", json={"model": "tuned:diver"}).json() == {"freed_bytes": GB}
    assert until(http, lambda now: True)["tuned"] == []
    assert not library.known["tuned:diver"]["removable"]
    for name in ("tuned:diver", "echo", "/etc/passwd"):
        assert "no fine-tuned model" in error(http.post(f"{PATH}/undo", json={"model": name}), 404)


def test_a_server_without_torch_says_what_to_install(http: httpx.Client, tuning: EchoFinetuning) -> None:
    tuning.lacks = "Fine-tuning needs torch. Install it: pip install 'freedive[train]'"
    assert http.get(PATH).json()["missing"] == tuning.lacks


def test_a_server_that_tunes_nothing_says_so() -> None:
    with serving(EchoModel()) as url:
        assert not httpx.get(f"{url}{PATH}").json()["offered"]
        assert "freedive finetune" in error(httpx.post(f"{url}{PATH}/estimate", json=body()))


def test_a_key_without_the_right_may_do_nothing(tuning: EchoFinetuning) -> None:
    secret = keys.create("ann", may=["pull"])
    with (
        serving(EchoModel(), keys=Keys(), finetuning=tuning) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}) as http,
    ):
        for path in (PATH, f"{PATH}/events"):
            assert "fine-tune" in error(http.get(path), 403)
        for path in (PATH, f"{PATH}/estimate"):
            assert "Ask its operator" in error(http.post(path, json=body()), 403)
        assert error(http.post(f"{PATH}/undo", json={"model": "echo"}), 403)
        assert httpx.get(f"{url}{PATH}").status_code == 401
    assert tuning.drafts == []


def test_pages_of_other_origins_may_not_tune(http: httpx.Client) -> None:
    headers = {"Origin": "http://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    assert http.post(PATH, json=body(), headers=headers).status_code == 403


def test_the_end_of_the_server_ends_a_run(tuning: EchoFinetuning, library: EchoLibrary) -> None:
    with (
        serving(EchoModel(), library=library, finetuning=tuning) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        begin(http)
        until(http, half_done)
    wait_until(lambda: tuning.drafts)
    assert tuning.made == {}


@pytest.mark.parametrize("steps", [1, MAX_POINTS, 10 * MAX_POINTS + 3])
def test_a_curve_is_short_and_keeps_the_mean(steps: int) -> None:
    curve = Curve()
    for step in range(1, steps + 1):
        curve.add({"step": step, "loss": 2.0})
    points = curve.facts()["trained"]
    assert 1 <= len(points) <= MAX_POINTS
    assert {loss for _, loss in points} == {2.0}
    assert points[-1][0] > steps * 0.9
    assert sorted(points) == points


def test_who_watches_already_sees_a_run_begin(http: httpx.Client, tuning: EchoFinetuning) -> None:
    with http.stream("GET", f"{PATH}/events") as response:
        events = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))
        assert next(events)["runs"] == []
        begin(http)
        assert any(half_done(now) for now in events)
