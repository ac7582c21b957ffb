"""Answers that run on the server: read again at any time by anybody who may, stopped, continued, kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers_client import AT, arrived, asked, ended, events, read, sent
from echo_model import HELD, EchoModel, serving
from patience import PATIENCE_S

from freedive.errors import Unavailable
from freedive.server import keys
from freedive.server.answers import answers
from freedive.server.conversations.messages import Messages
from freedive.server.keys import Keys

NUMBERS = [f"{number}\n\n" for number in range(300)]


def scripted() -> EchoModel:
    """Its answers to ``hold`` and ``ponder`` wait in the middle until they are released."""
    script = {
        "explode": "boom \N{COLLISION SYMBOL}",
        "count": "".join(NUMBERS),
        "hold": "".join([*NUMBERS[:9], HELD, *NUMBERS[9:]]),
        "ponder": "<think>hm " + HELD + "hm " * 499 + "</think>so",
    }
    return EchoModel(script=script, max_context=1 << 16)


@pytest.fixture(scope="module")
def shared() -> EchoModel:
    return scripted()


@pytest.fixture(scope="module")
def url(shared: EchoModel) -> Iterator[str]:
    with serving(shared) as url:
        yield url


@pytest.fixture
def model(shared: EchoModel) -> EchoModel:
    shared.released.clear()
    return shared


@pytest.fixture
def http(url: str, model: EchoModel) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield client


def test_an_answer_runs_without_a_reader(http: httpx.Client) -> None:
    id, answer = asked(http, "count")
    assert (answer["status"], answer["content"], answer["model"]) == ("running", "", "echo")
    whole = ended(http, id, answer["id"])
    assert (whole["status"], whole["finish"]) == ("complete", "stop")
    assert whole["content"].split() == list(map(str, range(300)))
    assert whole["usage"]["completion_tokens"] == len(whole["content"])
    assert whole["timings"]["tokens_per_s"] > 0
    assert "<p>299</p>" in whole["html"]


def test_two_readers_at_different_times_get_the_same(http: httpx.Client, model: EchoModel) -> None:
    id, answer = asked(http, "hold")
    first, second = (events(http, id, answer["id"]) for _ in range(2))
    begin = [next(first)]
    arrived(events(http, id, answer["id"]))
    later = [next(second)]
    model.released.set()
    later += second
    for got in ([*begin, *first], later):
        assert got[0]["snapshot"]["status"] == "running"
        html = got[0]["snapshot"]["html"] + "".join(each["settled"] for each in got[1:-1]) + got[-2]["tail"]
        text = got[0]["snapshot"]["text"] + "".join(each["text"] for each in got[1:-1])
        assert text == got[-1]["message"]["content"]
        assert (got[-1]["finished"], got[-1]["status"], got[-1]["error"]) == ("stop", "complete", "")
        assert html == read(http, id, answer["id"])["html"]
    assert later[0]["snapshot"]["text"]
    [late] = events(http, id, answer["id"])
    assert late["snapshot"]["html"] == read(http, id, answer["id"])["html"]
    assert late["snapshot"]["meter"]["num_tokens"] > 300


def test_a_stopped_answer_keeps_what_had_arrived_and_continues_in_place(http: httpx.Client, model: EchoModel) -> None:
    id, answer = asked(http, "hold")
    reading = events(http, id, answer["id"])
    arrived(reading)
    assert sent(http, f"/{id}/answers/{answer['id']}/stop") == {"id": answer["id"]}
    last = list(reading)[-1]
    assert (last["status"], last["finished"]) == ("stopped", "")
    begun = last["message"]["content"]
    assert begun
    assert read(http, id, answer["id"])["content"] == begun
    assert http.post(f"{AT}/{id}/answers/{answer['id']}/stop").status_code == 404
    model.released.set()
    assert sent(http, f"/{id}/answers", **{"continue": answer["id"]})["content"] == begun
    [whole, *_] = list(events(http, id, answer["id"]))
    assert whole["snapshot"]["text"].startswith(begun)
    assert model.asked[-1]["continue_final_message"]
    assert model.asked[-1]["messages"][-1] == {"role": "assistant", "content": begun}
    done = ended(http, id, answer["id"])
    assert (done["status"], done["content"][: len(begun)]) == ("complete", begun)
    assert len(done["content"]) > len(begun)
    assert len(http.get(f"{AT}/{id}").json()["messages"]) == 2
    refused = http.post(f"{AT}/{id}/answers", json={"continue": answer["id"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "continue")


def test_an_answer_that_the_limit_cut_says_so_and_continues(http: httpx.Client) -> None:
    id, answer = asked(http, "count", sampling={"max_tokens": 7})
    last = list(events(http, id, answer["id"]))[-1]
    cut = ended(http, id, answer["id"])
    assert (cut["status"], cut["finish"], len(cut["content"])) == ("complete", "length", 7)
    assert last.get("finished", "length") == "length"
    sent(http, f"/{id}/answers", **{"continue": answer["id"]})
    longer = ended(http, id, answer["id"])
    assert (longer["finish"], longer["content"][:7], len(longer["content"])) == ("length", cut["content"], 14)
    assert longer["usage"]["completion_tokens"] == 14
    found = http.get(f"{AT}/search", params={"q": "count"}).json()["hits"]
    assert id in [hit["id"] for hit in found]


def test_only_the_path_is_sent_with_the_settings_and_the_files(http: httpx.Client, model: EchoModel) -> None:
    settings = {
        "system": "Be brief.",
        "sampling": {"top_p": 0.5, "max_tokens": 3},
        "response_schema": {"type": "object"},
    }
    id = sent(http, "", settings=settings)["id"]
    file = sent(http, f"/{id}/files", name='a"b.txt', text="one two")
    assert file["num_tokens"] == 7
    first = sent(http, f"/{id}/messages", content="first", files=[file["id"]])
    one = sent(http, f"/{id}/answers", parent=first["id"])
    ended(http, id, one["id"])
    other = sent(http, f"/{id}/answers", parent=first["id"])
    ended(http, id, other["id"])
    edited = sent(http, f"/{id}/messages", content="edited", parent=None)
    second = sent(http, f"/{id}/messages", content="second", parent=other["id"])
    answer = sent(http, f"/{id}/answers", parent=second["id"])
    ended(http, id, answer["id"])
    asked = model.asked[-1]
    assert [each["role"] for each in asked["messages"]] == ["system", "user", "assistant", "user"]
    assert asked["messages"][1]["content"] == '<file name="a\\"b.txt">\none two\n</file>\n\nfirst'
    assert asked["messages"][2]["content"] == read(http, id, other["id"])["content"]
    assert asked["messages"][3]["content"] == "second"
    assert asked["format"].kind == "json_schema"
    assert model.engine.generations[-1].sampling.top_p == 0.5
    sent(http, f"/{id}/answers", parent=edited["id"])
    assert [each["content"] for each in model.asked[-1]["messages"] if each["role"] == "user"][-1] in (
        "edited",
        "second",
    )


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"sampling": {"temperature": "hot"}}, "temperature"),
        ({"sampling": {"messages": []}}, "sampling.messages"),
        ({"sampling": {"reasoning_effort": "endless"}}, "reasoning_effort"),
        ({"tools": ["shell"]}, "settings.tools"),
        ({"model": "absent"}, "model"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(
    http: httpx.Client, settings: dict[str, Any], param: str
) -> None:
    id = sent(http, "", settings=settings)["id"]
    question = sent(http, f"/{id}/messages", content="hi")
    refused = http.post(f"{AT}/{id}/answers", json={"parent": question["id"]})
    assert refused.status_code in (400, 404)
    assert refused.json()["error"]["param"] == param
    assert len(http.get(f"{AT}/{id}").json()["messages"]) == 1


@pytest.mark.parametrize("text", ["overload", "untemplated", "explode"])
def test_a_failure_is_stored_with_its_reason_and_what_had_arrived(http: httpx.Client, text: str) -> None:
    id, answer = asked(http, text)
    failed = ended(http, id, answer["id"])
    assert failed["status"] == "failed"
    assert failed["error"]
    assert "Traceback" not in failed["error"]
    assert failed["content"].strip() == ("boom" if text == "explode" else "")
    [snapshot] = events(http, id, answer["id"])
    assert snapshot["snapshot"]["error"] == failed["error"]


def test_thoughts_are_ended_on_request(http: httpx.Client, model: EchoModel) -> None:
    id, answer = asked(http, "ponder")
    reading = events(http, id, answer["id"])
    arrived(reading, "thoughts")
    sent(http, f"/{id}/answers/{answer['id']}/answer-now")
    assert model.engine.generations[-1].is_hurried
    model.released.set()
    list(reading)
    done = ended(http, id, answer["id"])
    assert (done["content"], done["reasoning"].split()) == ("so", ["hm"] * 500)
    assert done["timings"]["thought_s"] > 0.2


def test_an_answer_whose_conversation_is_deleted_for_good_ends(http: httpx.Client, model: EchoModel) -> None:
    id, answer = asked(http, "hold")
    arrived(events(http, id, answer["id"]))
    http.delete(f"{AT}/{id}?forever=true")
    assert model.engine.generations[-1].cancelled.wait(PATIENCE_S)


def test_another_key_sees_nothing_and_limits_count_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    ann, bob = keys.create("ann", max_running=1), keys.create("bob")
    mine, theirs = ({"Authorization": f"Bearer {key}"} for key in (ann, bob))
    with serving(scripted(), keys=Keys()) as url, httpx.Client(base_url=url, headers=mine) as http:
        id, answer = asked(http, "hold")
        for method, path in (("GET", "/events"), ("POST", "/stop"), ("POST", "/answer-now")):
            assert http.request(method, f"{AT}/{id}/answers/{answer['id']}{path}", headers=theirs).status_code == 404
        body = {"parent": answer["parent"]}
        assert http.post(f"{AT}/{id}/answers", json=body, headers=theirs).status_code == 404
        assert http.post(f"{AT}/{id}/answers", json=body).status_code == 429
        assert http.post("/v1/completions", json={"model": "echo", "prompt": "x"}).status_code == 429
        sent(http, f"/{id}/answers/{answer['id']}/stop")
        ended(http, id, answer["id"])
        sent(http, f"/{id}/answers", **body)
        assert http.get("/v1/stats").json()["callers"]["ann"]["requests"] == 1


def test_the_end_of_the_server_interrupts_answers_and_they_continue(tmp_path: Path) -> None:
    path = tmp_path / "conversations.sqlite"
    with serving(scripted(), conversations=path) as url, httpx.Client(base_url=url) as http:
        id, answer = asked(http, "hold")
        shown = arrived(events(http, id, answer["id"]))
    model = scripted()
    model.released.set()
    with serving(model, conversations=path) as url, httpx.Client(base_url=url) as http:
        whole = read(http, id, answer["id"])
        assert whole["status"] == "interrupted"
        assert whole["content"].startswith(shown)
        sent(http, f"/{id}/answers", **{"continue": answer["id"]})
        assert ended(http, id, answer["id"])["status"] == "complete"


def test_an_answer_whose_text_cannot_be_stored_is_not_complete(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*place: str, **new: str) -> None:
        raise RuntimeError("no thread can be started")

    monkeypatch.setattr(Messages, "append", fail)
    id, answer = asked(http, "count", sampling={"max_tokens": 9})
    lost = ended(http, id, answer["id"])
    assert (lost["status"], lost["content"]) == ("failed", "")
    assert lost["error"]


def test_an_answer_whose_end_could_not_be_stored_can_be_stopped(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*place: str, **new: Any) -> None:
        raise Unavailable("The disk is full", "Make room")

    with monkeypatch.context() as patch:
        patch.setattr(Messages, "finish", fail)
        id, answer = asked(http, "count", sampling={"max_tokens": 9})
        assert list(events(http, id, answer["id"]))[-1]["message"]["content"]
    assert read(http, id, answer["id"])["status"] == "running"
    assert http.post(f"{AT}/{id}/answers/{answer['id']}x/stop").status_code == 404
    sent(http, f"/{id}/answers/{answer['id']}/stop")
    kept = read(http, id, answer["id"])
    assert (kept["status"], len(kept["content"])) == ("stopped", 9)


def test_the_running_answers_of_one_key_are_bounded(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_RUNNING", 3)
    id, first = asked(http, "hold")
    body = {"parent": first["parent"]}
    more = [sent(http, f"/{id}/answers", **body) for _ in range(2)]
    assert http.post(f"{AT}/{id}/answers", json=body).status_code == 429
    assert len(http.get(f"{AT}/{id}").json()["messages"]) == 4
    for each in (first, *more):
        sent(http, f"/{id}/answers/{each['id']}/stop")
        ended(http, id, each["id"])
    last = sent(http, f"/{id}/answers", **body)
    sent(http, f"/{id}/answers/{last['id']}/stop")
    ended(http, id, last["id"])
