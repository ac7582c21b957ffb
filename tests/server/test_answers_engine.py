"""Answers of a real model: thoughts that are ended, and a cut answer that continues."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from answers_client import arrived, asked, ended, events, sent
from echo_model import serving

import freedive


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        freedive.load("nano", cache_tokens=8192) as model,
        serving(model) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


QUESTION = "What is 17 + 25 - 3?"
SAMPLING = {"temperature": 0.0, "max_tokens": 200}


def test_thoughts_end_when_asked_and_the_answer_is_that_of_a_budget_of_as_many_tokens(http: httpx.Client) -> None:
    id, answer = asked(http, QUESTION, sampling=SAMPLING)
    whole = ended(http, id, answer["id"])
    assert whole["usage"]["thought_tokens"] > 20
    for attempt in range(50):  # until the request comes in the middle of the thoughts, wherever that is
        hurried = sent(http, f"/{id}/answers", parent=answer["parent"])
        if attempt % 2:
            arrived(events(http, id, hurried["id"]), "thoughts")
        http.post(f"/app/conversations/{id}/answers/{hurried['id']}/answer-now")
        short = ended(http, id, hurried["id"])
        thoughts = short["usage"]["thought_tokens"]
        if 0 < thoughts < whole["usage"]["thought_tokens"]:
            break
    else:
        pytest.fail("the thoughts never ended earlier")
    assert (short["status"], short["finish"]) == ("complete", "stop")
    id, answer = asked(http, QUESTION, sampling={**SAMPLING, "thinking_budget": thoughts})
    budgeted = ended(http, id, answer["id"])
    assert (short["reasoning"], short["content"]) == (budgeted["reasoning"], budgeted["content"])


def test_the_meter_tells_the_prompt_and_what_was_cached(http: httpx.Client) -> None:
    id, answer = asked(http, "word " * 100, sampling={"temperature": 0.0, "max_tokens": 20})
    *_, last, _ = events(http, id, answer["id"])
    assert ended(http, id, answer["id"])["error"] == ""
    meter = last.get("meter") or last["snapshot"]["meter"]
    assert meter["prefilled"] == meter["prompt_tokens"] > 100
    assert meter["num_tokens"] == meter["prompt_tokens"] + 20
    again = sent(http, f"/{id}/answers", parent=answer["parent"])
    assert ended(http, id, again["id"])["usage"]["cached_tokens"] > 60


def test_a_cut_answer_continues_as_if_it_had_not_been_cut(http: httpx.Client) -> None:
    settings = {"sampling": {"temperature": 0.0, "max_tokens": 200, "enable_thinking": False}}
    id, answer = asked(http, "Hello, who are you?", **settings)
    whole = ended(http, id, answer["id"])["content"]
    settings["sampling"]["max_tokens"] = 3
    id, answer = asked(http, "Hello, who are you?", **settings)
    cut = ended(http, id, answer["id"])
    assert (cut["finish"], whole.startswith(cut["content"])) == ("length", True)
    changed = {"settings": {"sampling": {**settings["sampling"], "max_tokens": 200}}}
    assert http.patch(f"/app/conversations/{id}", json=changed).status_code == 200
    sent(http, f"/{id}/answers", **{"continue": answer["id"]})
    done = ended(http, id, answer["id"])
    assert done["status"] == "complete"
    assert done["content"] == whole > cut["content"]
