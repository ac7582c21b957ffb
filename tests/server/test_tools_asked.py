"""Tools of conversations: asked about before each use, run or refused, kept, and bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers_client import AT, arrived, asked, ended, events, read, sent
from echo_model import HELD, EchoModel, serving
from patience import PATIENCE_S

from freedive.server import keys
from freedive.server.answers.prompt import MAX_ROUNDS
from freedive.server.conversations.records import REFUSED
from freedive.server.keys import Keys

BOTH = ["calculator", "files"]


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def scripted() -> EchoModel:
    """Multiplies with the calculator, reads files, and says what it was told."""
    script = {
        "tool: 51": "It is **51**.",
        "tool: 81": f"Eighty{HELD}one",
        REFUSED: "As you wish.",
        "tool: Part": "Blue.",
        "tool: Error": "A fault.",
        "multiply": "<think>Hard.</think>Let me see. " + call("calculator", expression="17*3"),
        "two": call("calculator", expression="17*3") + call("calculator", expression="2+2"),
        "endless": call("calculator", expression="1+1"),
        "colour": call("files", name="whale.txt", part=2),
        "disk": call("files", name="/etc/passwd"),
        "shell": call("shell", command="rm"),
        "slow": call("calculator", expression="9*9"),
    }
    return EchoModel(script=script)


@pytest.fixture(scope="module")
def model() -> EchoModel:
    return scripted()


@pytest.fixture(scope="module")
def http(model: EchoModel) -> Iterator[httpx.Client]:
    with serving(model) as url, httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield client


def decided(http: httpx.Client, id: str, message: dict[str, Any], answer: str, call: int = 0) -> dict[str, Any]:
    """Answers the question about a call and waits for what follows."""
    sent(http, f"/{id}/answers/{message['id']}/calls/{message['calls'][call]['id']}", answer=answer)
    return ended(http, id, message["id"])


def question(http: httpx.Client, text: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    """Asks until the answer ends, or asks about a call."""
    id, answer = asked(http, text, **{"tools": BOTH, **settings})
    return id, ended(http, id, answer["id"])


def test_a_call_runs_when_it_was_allowed_and_the_answer_goes_on(http: httpx.Client, model: EchoModel) -> None:
    id, asking = question(http, "multiply")
    assert asking["status"] == "asking"
    [made] = asking["calls"]
    assert (made["name"], json.loads(made["arguments"])) == ("calculator", {"expression": "17*3"})
    assert (made["state"], made["result"]) == ("asked", "")
    assert [tool["function"]["name"] for tool in model.asked[-1]["tools"]] == BOTH
    done = decided(http, id, asking, "once")
    assert (done["status"], done["reasoning"]) == ("complete", "Hard.")
    assert done["content"] == "Let me see.\n\nIt is **51**."
    assert (done["calls"][0]["state"], done["calls"][0]["result"]) == ("done", "51")
    told = model.asked[-1]["messages"]
    assert [each["role"] for each in told] == ["user", "assistant", "tool"]
    assert (told[1]["content"], told[1]["reasoning_content"]) == ("Let me see.", "Hard.")
    assert told[1]["tool_calls"][0]["id"] == told[2]["tool_call_id"]
    assert done["usage"]["completion_tokens"] > asking["usage"]["completion_tokens"] > 0
    assert http.get(f"{AT}/{id}").json()["allowed"] == []


def test_the_next_question_has_the_calls_and_results_before_it(http: httpx.Client, model: EchoModel) -> None:
    id, asking = question(http, "multiply")
    done = decided(http, id, asking, "once")
    again = sent(http, f"/{id}/messages", content="thanks", parent=done["id"])
    ended(http, id, sent(http, f"/{id}/answers", parent=again["id"])["id"])
    roles = [each["role"] for each in model.asked[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    assert model.asked[-1]["messages"][3]["content"] == "It is **51**."


def test_a_refusal_runs_nothing_and_is_told_to_the_model(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    done = decided(http, id, asking, "refuse")
    assert (done["status"], done["content"]) == ("complete", "Let me see.\n\nAs you wish.")
    assert (done["calls"][0]["state"], done["calls"][0]["result"]) == ("refused", REFUSED)


def test_always_holds_for_the_conversation_until_the_tool_is_turned_off(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    decided(http, id, asking, "always")
    assert http.get(f"{AT}/{id}").json()["allowed"] == ["calculator"]
    again = sent(http, f"/{id}/answers", parent=asking["parent"])
    done = ended(http, id, again["id"])
    assert (done["status"], done["calls"][0]["result"]) == ("complete", "51")
    http.patch(f"{AT}/{id}", json={"settings": {"tools": ["files"]}})
    http.patch(f"{AT}/{id}", json={"settings": {"tools": BOTH}})
    again = sent(http, f"/{id}/answers", parent=asking["parent"])
    assert ended(http, id, again["id"])["status"] == "asking"
    assert question(http, "multiply")[1]["status"] == "asking", "another conversation asks"


def test_each_of_several_calls_is_asked_about(http: httpx.Client) -> None:
    id, asking = question(http, "two")
    assert [each["state"] for each in asking["calls"]] == ["asked", "asked"]
    half = decided(http, id, asking, "refuse", 1)
    assert (half["status"], [each["state"] for each in half["calls"]]) == ("asking", ["asked", "refused"])
    done = decided(http, id, half, "once")
    assert (done["status"], [each["result"] for each in done["calls"]]) == ("complete", ["51", REFUSED])


def test_always_answers_all_questions_about_the_tool(http: httpx.Client) -> None:
    id, asking = question(http, "two")
    assert [each["result"] for each in decided(http, id, asking, "always")["calls"]] == ["51", "4"]


def test_nothing_but_the_answer_to_the_question_runs_a_call(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    at, place = f"{AT}/{id}/answers", f"{AT}/{id}/answers/{asking['id']}/calls"
    for path, body in (
        (at, {"continue": asking["id"]}),
        (f"{place}/other", {"answer": "once"}),
        (f"{place}/{asking['calls'][0]['id']}", {"answer": "yes"}),
        (f"{place}/{asking['calls'][0]['id']}", {}),
        (f"{AT}/{id}/messages", {"content": "x", "role": "assistant", "parent": asking["parent"], "calls": []}),
    ):
        assert http.post(path, json=body).status_code == 400, body
    for settings in ({"tools": BOTH, "allowed": ["calculator"]}, {"allowed_tools": BOTH}):
        assert http.patch(f"{AT}/{id}", json={"settings": settings}).status_code == 400
    assert http.patch(f"{AT}/{id}", json={"allowed": ["calculator"]}).status_code == 400
    whole = json.loads(http.get(f"{AT}/{id}/export").text)
    copies = http.post(f"{AT}/import", json={"text": json.dumps([{**whole[0], "allowed": BOTH}])})
    if copies.status_code == 200:
        assert http.get(f"{AT}/{copies.json()['conversations'][0]['id']}").json()["allowed"] == []
    kept = read(http, id, asking["id"])
    assert (kept["status"], kept["calls"]) == ("asking", asking["calls"])


def test_a_question_is_answered_once(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    decided(http, id, asking, "refuse")
    path = f"{AT}/{id}/answers/{asking['id']}/calls/{asking['calls'][0]['id']}"
    late = http.post(path, json={"answer": "once"})
    assert (late.status_code, late.json()["error"]["param"]) == (400, "call")
    assert read(http, id, asking["id"])["calls"][0]["state"] == "refused"


def test_an_answer_that_asks_can_be_stopped_and_goes_on_without_the_call(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    sent(http, f"/{id}/answers/{asking['id']}/stop")
    stopped = read(http, id, asking["id"])
    assert (stopped["status"], stopped["calls"][0]["state"]) == ("stopped", "refused")
    sent(http, f"/{id}/answers", **{"continue": asking["id"]})
    assert ended(http, id, asking["id"])["content"].endswith("As you wish.")


def test_an_answer_can_be_stopped_after_a_call(http: httpx.Client, model: EchoModel) -> None:
    id, asking = question(http, "slow")
    sent(http, f"/{id}/answers/{asking['id']}/calls/{asking['calls'][0]['id']}", answer="once")
    arrived(events(http, id, asking["id"]))
    sent(http, f"/{id}/answers/{asking['id']}/stop")
    stopped = ended(http, id, asking["id"])
    assert (stopped["status"], stopped["calls"][0]["result"]) == ("stopped", "81")


def test_files_are_named_and_read_in_parts_by_name(http: httpx.Client, model: EchoModel) -> None:
    id = sent(http, "", settings={"tools": BOTH})["id"]
    file = sent(http, f"/{id}/files", name="whale.txt", text="x" * 4000 + "the whale is blue")
    sent(http, f"/{id}/files", name="unsent.txt", text="not yet")
    first = sent(http, f"/{id}/messages", content="colour", files=[file["id"]])
    answer = sent(http, f"/{id}/answers", parent=first["id"])
    asking = ended(http, id, answer["id"])
    assert model.asked[-1]["messages"][0]["content"] == '<file name="whale.txt" parts="2" />\n\ncolour'
    done = decided(http, id, asking, "once")
    assert done["calls"][0]["result"] == 'Part 2 of 2 of "whale.txt":\nthe whale is blue'
    assert done["content"] == "Blue."
    edited = sent(http, f"/{id}/messages", content="disk", files=[file["id"]])
    asking = ended(http, id, sent(http, f"/{id}/answers", parent=edited["id"])["id"])
    done = decided(http, id, asking, "once")
    assert "root:" not in done["calls"][0]["result"]
    assert done["calls"][0]["result"].startswith("Error: There is no file")
    assert "unsent" not in done["calls"][0]["result"]


def test_a_tool_that_does_not_exist_or_is_off_runs_nothing_and_asks_nothing(http: httpx.Client) -> None:
    for text, tools in (("shell", BOTH), ("multiply", ["files"])):
        _, done = question(http, text, tools=tools)
        assert (done["status"], done["calls"][0]["state"]) == ("complete", "done")
        assert done["calls"][0]["result"].startswith("Error: There is no tool")


def test_the_rounds_of_one_answer_are_bounded(http: httpx.Client, model: EchoModel) -> None:
    id, asking = question(http, "endless")
    done = decided(http, id, asking, "always")
    assert done["status"] == "complete"
    assert [each["round"] for each in done["calls"]] == list(range(MAX_ROUNDS))
    assert model.asked[-1]["tool_choice"] == "none"


def test_a_question_survives_the_end_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "conversations.sqlite"
    with serving(scripted(), conversations=path) as url, httpx.Client(base_url=url) as http:
        id, asking = question(http, "multiply")
    with serving(scripted(), conversations=path) as url, httpx.Client(base_url=url) as http:
        assert read(http, id, asking["id"])["status"] == "asking"
        assert decided(http, id, asking, "once")["content"].endswith("It is **51**.")


def test_another_key_cannot_answer_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    mine, theirs = ({"Authorization": f"Bearer {keys.create(name)}"} for name in ("ann", "bob"))
    with serving(scripted(), keys=Keys()) as url, httpx.Client(base_url=url, headers=mine) as http:
        id, asking = question(http, "multiply")
        path = f"{AT}/{id}/answers/{asking['id']}/calls/{asking['calls'][0]['id']}"
        assert http.post(path, json={"answer": "once"}, headers=theirs).status_code == 404
        assert read(http, id, asking["id"])["status"] == "asking"


def test_exports_and_search_keep_calls_and_their_results(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    assert id in [hit["id"] for hit in http.get(f"{AT}/search", params={"q": "expression 17"}).json()["hits"]]
    done = decided(http, id, asking, "once")
    text = http.get(f"{AT}/{id}/export", params={"format": "markdown"}).text
    assert '    calculator {"expression": "17*3"} (done)\n    51\n' in text
    whole = http.get(f"{AT}/{id}/export").text
    copy = http.post(f"{AT}/import", json={"text": whole}).json()["conversations"][0]["id"]
    assert http.get(f"{AT}/{copy}").json()["messages"][1]["calls"] == done["calls"]
    assert http.get(f"{AT}/{copy}/export").text == whole
    hits = http.get(f"{AT}/search", params={"q": "calculator 51"}).json()["hits"]
    assert {id, copy} <= {hit["id"] for hit in hits}
    http.delete(f"{AT}/{copy}?forever=true")
    assert copy not in [hit["id"] for hit in http.get(f"{AT}/search", params={"q": "51"}).json()["hits"]]


def test_a_reader_gets_the_calls_of_a_growing_answer(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    [whole] = events(http, id, asking["id"])
    assert (whole["snapshot"]["status"], whole["snapshot"]["calls"]) == ("asking", asking["calls"])
    decided(http, id, asking, "always")
    again = sent(http, f"/{id}/answers", parent=asking["parent"])
    got = list(events(http, id, again["id"]))
    seen = [made for each in got[:-1] for made in each.get("calls", each.get("snapshot", {}).get("calls"))]
    assert [made["result"] for made in seen] == ["51"]


def test_an_imported_question_is_asked_and_one_without_a_call_is_not(http: httpx.Client) -> None:
    id, _ = question(http, "multiply")
    [whole] = json.loads(http.get(f"{AT}/{id}/export").text)

    def imported(value: dict[str, Any]) -> dict[str, Any]:
        [copy] = http.post(f"{AT}/import", json={"text": json.dumps([value])}).json()["conversations"]
        read: dict[str, Any] = http.get(f"{AT}/{copy['id']}").json()
        return read

    copy = imported(whole)
    asking = copy["messages"][1]
    assert (asking["status"], copy["allowed"]) == ("asking", [])
    assert decided(http, copy["id"], asking, "once")["calls"][0]["result"] == "51"
    whole["messages"][1]["calls"] = []
    assert imported(whole)["messages"][1]["status"] == "interrupted"


def test_always_for_a_tool_that_is_off_allows_nothing(http: httpx.Client) -> None:
    id, asking = question(http, "multiply")
    http.patch(f"{AT}/{id}", json={"settings": {"tools": ["files"]}})
    done = decided(http, id, asking, "always")
    assert done["calls"][0]["result"].startswith("Error: There is no tool")
    assert http.get(f"{AT}/{id}").json()["allowed"] == []
