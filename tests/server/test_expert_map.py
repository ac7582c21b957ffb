"""The stream of the page's expert map: what a model wakes for each token of an answer, for those who may read it."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers_client import AT, asked, ended, sent
from echo_model import EchoModel, serving

import freedive
from freedive.engine.scheduler import Scheduler
from freedive.server import keys
from freedive.server.keys import Keys


@pytest.fixture(scope="module")
def model() -> EchoModel:
    return EchoModel(script={"ocean": "deep & <b>blue</b> " * 400, "count": "number " * 400}, delay_s=0.005)


@pytest.fixture(scope="module")
def http(model: EchoModel) -> Iterator[httpx.Client]:
    with serving(model) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def experts(http: httpx.Client, id: str, message: str) -> Generator[dict[str, Any], None, None]:
    with http.stream("GET", f"{AT}/{id}/answers/{message}/experts") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def unpacked(token: dict[str, Any]) -> list[int]:
    data = base64.b64decode(token["experts"])
    return list(struct.unpack(f"<{len(data) // 2}H", data))


def test_the_stream_begins_with_the_model_and_has_every_token_from_then_to_the_end(http: httpx.Client) -> None:
    id, answer = asked(http, "ocean")
    reading = experts(http, id, answer["id"])
    assert next(reading) == {"model": {"experts": [4, 4], "on_disk": True}}
    batches = [next(reading) for _ in range(3)]
    http.post(f"{AT}/{id}/answers/{answer['id']}/stop")
    *more, last = reading
    batches += more
    assert last == {"over": True}
    tokens = [token for batch in batches for token in batch["tokens"]]
    assert len(tokens) > len(batches), "tokens come in batches"
    first = tokens[0]["index"]
    assert [token["index"] for token in tokens] == list(range(first, first + len(tokens)))
    text = ended(http, id, answer["id"])["content"]
    assert "".join(token["text"] for token in tokens) == text[first:]
    for token in tokens:
        assert unpacked(token) == [token["index"] % 4, 3, 0, 1]
        assert token["missed"] == ([0, 1] if token["index"] % 4 == 3 else [1])
        assert token["top"] == [[token["text"], 0.778801], ["<", 0.22313]]
        assert token["p"] == 0.778801


def test_only_while_somebody_reads_is_anything_watched(http: httpx.Client, model: EchoModel) -> None:
    id, answer = asked(http, "count")
    reading = experts(http, id, answer["id"])
    while "tokens" not in next(reading):
        pass
    generation = model.engine.generations[-1]
    assert generation.watches
    reading.close()
    for _ in range(200):
        if not generation.watches:
            break
        http.get("/health")
    assert not generation.watches
    http.post(f"{AT}/{id}/answers/{answer['id']}/stop")
    ended(http, id, answer["id"])


def test_an_answer_that_has_ended_has_nothing_to_show_and_unknown_ones_are_not_found(http: httpx.Client) -> None:
    id, answer = asked(http, "hi")
    ended(http, id, answer["id"])
    assert list(experts(http, id, answer["id"])) == [{"over": True}]
    for place in (f"{id}/answers/none", f"none/answers/{answer['id']}"):
        assert http.get(f"{AT}/{place}/experts").status_code == 404


def test_the_answers_of_other_keys_are_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    owners = {name: {"Authorization": f"Bearer {keys.create(name)}"} for name in ("ann", "bob")}
    model = EchoModel(script={"count": "number " * 400}, delay_s=0.005)
    with serving(model, keys=Keys()) as url, httpx.Client(base_url=url, headers=owners["ann"]) as ann:
        id, answer = asked(ann, "count")
        path = f"{AT}/{id}/answers/{answer['id']}/experts"
        assert ann.get(path, headers=owners["bob"]).status_code == 404
        assert httpx.get(f"{url}{path}").status_code == 401
        assert not model.engine.generations[-1].watches
        sent(ann, f"/{id}/answers/{answer['id']}/stop")
        assert list(experts(ann, id, answer["id"]))[-1] == {"over": True}


def slow_steps(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Makes steps wait until the returned event is set, 20 ms at most."""
    fast, plan = threading.Event(), Scheduler.plan

    def late(scheduler: Scheduler) -> Any:
        fast.wait(0.02)
        return plan(scheduler)

    monkeypatch.setattr(Scheduler, "plan", late)
    return fast


def test_a_real_mixture_tells_the_experts_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = slow_steps(monkeypatch)
    with (
        freedive.load("nano", cache_tokens=4096) as model,
        serving(model) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        settings = {"temperature": 0.0, "max_tokens": 400, "ignore_eos": True}
        id, answer = asked(http, "Hello, who are you?", sampling=settings)
        reading = experts(http, id, answer["id"])
        first, *batches = next(reading), next(reading)
        fast.set()
        batches += reading
        *batches, last = batches
        assert (first, last) == ({"model": {"experts": [16, 16, 16], "on_disk": False}}, {"over": True})
        tokens = [token for batch in batches for token in batch["tokens"]]
        assert tokens[-1]["index"] == 399
        for token in tokens:
            chosen = unpacked(token)
            assert len(chosen) == 12
            assert all(len(set(chosen[first : first + 4])) == 4 for first in (0, 4, 8))
            assert max(chosen) < 16
            assert token["missed"] == []
            assert token["top"][0] == [token["text"], token["p"]], "greedy takes the likeliest"
            assert len(token["top"]) == 5
        watched = ended(http, id, answer["id"])
        id, answer = asked(http, "Hello, who are you?", sampling=settings)
        unwatched = ended(http, id, answer["id"])
        assert (watched["reasoning"], watched["content"]) == (unwatched["reasoning"], unwatched["content"])
