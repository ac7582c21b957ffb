"""Answers that run on the server: read again at any time by anybody who may, stopped, continued, kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving

AT = "/app/conversations"


def slow() -> EchoModel:
    script = {
        "count": "".join(f"{number}\n\n" for number in range(300)),
        "ponder": "<think>" + "hm " * 500 + "</think>so",
    }
    return EchoModel(script=script, delay_s=0.002, max_context=1 << 16)


@pytest.fixture(scope="module")
def model() -> EchoModel:
    return slow()


@pytest.fixture(scope="module")
def http(model: EchoModel) -> Iterator[httpx.Client]:
    with serving(model) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def sent(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(f"{AT}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked(http: httpx.Client, text: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    id = sent(http, "", settings=settings)["id"]
    question = sent(http, f"/{id}/messages", content=text)
    return id, sent(http, f"/{id}/answers", parent=question["id"])


def events(http: httpx.Client, id: str, message: str) -> Iterator[dict[str, Any]]:
    with http.stream("GET", f"{AT}/{id}/answers/{message}/events") as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def read(http: httpx.Client, id: str, message: str) -> dict[str, Any]:
    whole = http.get(f"{AT}/{id}?html=true").json()
    return next(each for each in whole["messages"] if each["id"] == message)


def ended(http: httpx.Client, id: str, message: str) -> dict[str, Any]:
    for _ in range(200):
        if (found := read(http, id, message))["status"] != "running":
            return found
        time.sleep(0.05)
    raise AssertionError("it runs for ever")


def test_an_answer_runs_without_a_reader(http: httpx.Client) -> None:
    id, answer = asked(http, "count")
    assert (answer["status"], answer["content"], answer["model"]) == ("running", "", "echo")
    whole = ended(http, id, answer["id"])
    assert (whole["status"], whole["finish"]) == ("complete", "stop")
    assert whole["content"].split() == list(map(str, range(300)))
    assert whole["usage"]["completion_tokens"] == len(whole["content"])
    assert whole["timings"]["tokens_per_s"] > 0
    assert "<p>299</p>" in whole["html"]


def test_two_readers_at_different_times_get_the_same(http: httpx.Client) -> None:
    id, answer = asked(http, "count")
    first = events(http, id, answer["id"])
    begin = [next(first) for _ in range(5)]
    second = list(events(http, id, answer["id"]))
    for got in ([*begin, *first], second):
        assert got[0]["snapshot"]["status"] == "running"
        html = got[0]["snapshot"]["html"] + "".join(each["settled"] for each in got[1:-1]) + got[-2]["tail"]
        text = got[0]["snapshot"]["text"] + "".join(each["text"] for each in got[1:-1])
        assert text == got[-1]["message"]["content"]
        assert (got[-1]["finished"], got[-1]["status"], got[-1]["error"]) == ("stop", "complete", "")
        assert html == read(http, id, answer["id"])["html"]
    assert second[0]["snapshot"]["text"]
    [late] = events(http, id, answer["id"])
    assert late["snapshot"]["html"] == read(http, id, answer["id"])["html"]
    assert late["snapshot"]["meter"]["num_tokens"] > 300
