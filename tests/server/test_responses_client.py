"""OpenAI's Responses API with the official client library, against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from echo_model import EchoModel
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from patience import PATIENCE_S
from pydantic import TypeAdapter

from freedive.text.format import Format
from freedive.text.tools import Function

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALLING = 'Let me see.\n<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
THOUGHTFUL = "<think>\nTwo and two,\nthat is.\n</think>\n\nIt is four, <think> me."


@pytest.fixture(scope="module")
def client(live_server: str, fake_model: EchoModel) -> Iterator[openai.OpenAI]:
    fake_model.script |= {
        "two and two rain?": THOUGHTFUL + CALLING,
        "rain?": CALLING,
        "two and two": THOUGHTFUL,
        "boom": "ab\N{COLLISION SYMBOL}",
        "endless": "word " * 5000,
    }
    with openai.OpenAI(base_url=f"{live_server}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_text_is_answered(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="echo", input="hello", instructions="be brief", temperature=0.5, metadata={"k": "v"}, user="u"
    )
    assert response.output_text == "system: be brief\nuser: hello"
    assert (response.status, response.output[0].status) == ("completed", "completed")
    assert response.id.startswith("resp_")
    assert (response.instructions, response.temperature, response.top_p) == ("be brief", 0.5, 1.0)
    assert (response.metadata, response.user, response.store) == ({"k": "v"}, "u", True)
    assert response.usage.input_tokens == response.usage.output_tokens == len("system: be brief\nuser: hello")
    assert response.usage.total_tokens == 2 * response.usage.input_tokens
    assert response.completed_at >= response.created_at > 0


def test_the_stream_has_the_same_content_in_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="echo", input="two and two", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_text.delta",
        "output_text.done",
        "completed",
    ]
    thoughts, text = ("".join(e.delta for e in events if e.type == f"response.{kind}.delta") for kind in PARTS)
    assert (thoughts, text) == ("Two and two,\nthat is.", "It is four, <think> me.")
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert events[-1].response.output == done
    assert [event.text for event in events if event.type.endswith("text.done")] == [thoughts, text]
    assert client.responses.retrieve(events[0].response.id) == events[-1].response


PARTS = ("reasoning_text", "output_text")


def test_responses_match_the_types_of_the_client(client: openai.OpenAI, live_server: str) -> None:
    asked = {"model": "echo", "input": "two and two rain?", "tools": [WEATHER], "stream": True, "top_logprobs": 1}
    asked["include"] = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    stream = httpx.post(f"{live_server}/v1/responses", json=asked)
    lines = stream.text.splitlines()
    reported = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [line.removeprefix("event: ") for line in lines if line.startswith("event: ")] == [
        t["type"] for t in reported
    ]
    read = TypeAdapter(list[ResponseStreamEvent]).validate_python(reported)
    assert {event.type for event in read} >= {"response.function_call_arguments.done", "response.reasoning_text.done"}
    response = client.responses.retrieve(reported[0]["response"]["id"])
    assert Response.model_validate(response.to_dict()) == response
    items = httpx.get(f"{live_server}/v1/responses/{response.id}/input_items").json()
    assert ResponseItemList.model_validate(items).data[0].type == "message"


def test_thoughts_are_an_item_of_their_own(client: openai.OpenAI) -> None:
    response = client.responses.create(model="echo", input="two and two")
    thought, message = response.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Two and two,\nthat is.", [])
    assert (message.type, response.output_text) == ("message", "It is four, <think> me.")
    assert response.usage.output_tokens_details.reasoning_tokens > len("Two and two,\nthat is.")


def test_an_answer_that_is_cut_off_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="echo", input="hello", max_output_tokens=4)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output_text, response.output[0].status) == ("user", "incomplete")
    last = list(client.responses.create(model="echo", input="hello", max_output_tokens=4, stream=True))[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")


def test_tool_calls_come_whole_and_streamed(client: openai.OpenAI, fake_model: EchoModel) -> None:
    asked: dict[str, Any] = {"model": "echo", "input": "rain?", "tools": [WEATHER]}
    message, call = client.responses.create(**asked).output
    assert message.content[0].text == "Let me see."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Köln"})
    function = {"name": "weather", "parameters": WEATHER["parameters"], "strict": False}
    assert fake_model.asked[-1]["tools"] == [{"type": "function", "function": function}]
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    assert json.loads(final.output[1].arguments) == {"city": "Köln"}


def test_without_tools_what_looks_like_a_call_is_text(client: openai.OpenAI) -> None:
    response = client.responses.create(model="echo", input="rain?", tools=[WEATHER], tool_choice="none")
    assert response.output_text == CALLING


def test_output_can_be_sent_back_with_the_results(client: openai.OpenAI, fake_model: EchoModel) -> None:
    first = client.responses.create(model="echo", input="rain?", tools=[WEATHER], store=False)
    call = first.output[1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "it pours"}
    client.responses.create(model="echo", input=[{"role": "user", "content": "rain?"}, *first.output, result])
    function = {"name": "weather", "arguments": call.arguments}
    calls = [{"id": call.call_id, "type": "function", "function": function}]
    assert fake_model.asked[-1]["messages"] == [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": call.call_id, "content": "it pours"},
    ]


def test_thoughts_can_be_carried_open_or_sealed(client: openai.OpenAI, fake_model: EchoModel) -> None:
    first = client.responses.create(model="echo", input="two and two", include=["reasoning.encrypted_content"])
    thought, message = (item.to_dict() for item in first.output)
    sealed = {key: value for key, value in thought.items() if key != "content"}
    open = {key: value for key, value in thought.items() if key != "encrypted_content"}
    thoughts = {"reasoning_content": "Two and two,\nthat is."}
    said = {"role": "assistant", "content": "It is four, <think> me."} | thoughts
    for each in (open, sealed):
        client.responses.create(model="echo", input=[each, message, {"role": "user", "content": "sure?"}])
        said = {
            "role": "assistant",
            "content": "It is four, <think> me.",
            "reasoning_content": "Two and two,\nthat is.",
        }
        assert fake_model.asked[-1]["messages"] == [said, {"role": "user", "content": "sure?"}]


def test_parts_and_roles(client: openai.OpenAI, fake_model: EchoModel) -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    asked = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "ok", "annotations": []}]},
        {"type": "message", "role": "user", "content": parts},
    ]
    response = client.responses.create(model="echo", input=asked)
    assert response.output_text == "system: be brief\nassistant: ok\nuser: a\nb"


def test_a_conversation_goes_on_without_its_instructions(client: openai.OpenAI) -> None:
    first = client.responses.create(model="echo", input="one", instructions="be brief")
    second = client.responses.create(model="echo", input="two", previous_response_id=first.id)
    third = client.responses.create(model="echo", input="three", previous_response_id=second.id, instructions="rhyme")
    assert second.output_text == f"user: one\nassistant: {first.output_text}\nuser: two"
    assert third.output_text == f"system: rhyme\n{second.output_text}\nassistant: {second.output_text}\nuser: three"
    items = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    assert [item.content[0].text for item in items] == [
        "one",
        first.output_text,
        "two",
        second.output_text,
        "three",
    ]
    newest = client.responses.input_items.list(third.id, limit=2)
    assert [item.id for item in newest.data] == [items[4].id, items[3].id]
    assert newest.has_more


def test_an_item_can_be_referred_to(client: openai.OpenAI) -> None:
    first = client.responses.create(model="echo", input="one")
    reference = {"type": "item_reference", "id": first.output[0].id}
    assert client.responses.create(model="echo", input=[reference]).output_text == f"assistant: {first.output_text}"
    with pytest.raises(openai.NotFoundError, match="msg_none"):
        client.responses.create(model="echo", input=[{"type": "item_reference", "id": "msg_none"}])


def test_a_response_that_is_not_stored_is_not_found(client: openai.OpenAI) -> None:
    secret = client.responses.create(model="echo", input="psst", store=False)
    gone = client.responses.create(model="echo", input="bye")
    client.responses.delete(gone.id)
    for response in (secret, gone):
        with pytest.raises(openai.NotFoundError, match=response.id):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError, match=response.id) as caught:
            client.responses.create(model="echo", input="and?", previous_response_id=response.id)
        assert caught.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="echo", input=[{"type": "item_reference", "id": response.output[0].id}])


def test_only_what_runs_in_the_background_is_cancelled(client: openai.OpenAI) -> None:
    response = client.responses.create(model="echo", input="hello")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")


def test_input_tokens_are_counted(client: openai.OpenAI) -> None:
    first = client.responses.create(model="echo", input="one")
    assert client.responses.input_tokens.count(input="hey").input_tokens == len("user: hey")
    counted = client.responses.input_tokens.count(model="echo", input="hey", previous_response_id=first.id)
    used = client.responses.create(model="echo", input="hey", previous_response_id=first.id).usage.input_tokens
    assert counted.input_tokens == used


def test_logprobs_are_those_of_the_text_alone(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "echo",
        "input": "two and two",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    _, message = client.responses.create(**asked).output
    entries = message.content[0].logprobs
    assert "".join(entry.token for entry in entries) == message.content[0].text
    assert [(top.token, top.logprob) for top in entries[0].top_logprobs] == [("I", -0.25), ("?", -1.5)]
    events = list(client.responses.create(stream=True, **asked))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [entry.token for event in deltas for entry in event.logprobs] == [entry.token for entry in entries]


def test_effort_is_asked_of_the_model(client: openai.OpenAI, fake_model: EchoModel) -> None:
    client.responses.create(model="echo", input="hello", reasoning={"effort": "high", "summary": "auto"})
    assert fake_model.asked[-1]["effort"] == "high"


def test_sampling_reaches_the_engine(client: openai.OpenAI, fake_model: EchoModel) -> None:
    ours = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 11}
    client.responses.create(
        model="echo", input="hello", max_output_tokens=7, temperature=0.5, top_p=0.9, extra_body=ours
    )
    sampling = fake_model.engine.generations[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 5)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.05, 1.1, 11)
    assert sampling.logprobs is None


def test_errors_have_their_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Served models: echo"):
        client.responses.create(model="gpt-99", input="hello")
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="echo", input="overload")
    with pytest.raises(openai.BadRequestError, match="tokens") as caught:
        client.responses.create(model="echo", input="x" * 5000, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_an_error_is_reported_and_stores_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="the server's log has it as"):
        client.responses.create(model="echo", input="boom")
    *_, last = client.responses.create(model="echo", input="boom", stream=True)
    assert (last.type, last.response.error.code) == ("response.failed", "server_error")
    assert "the server's log has it as" in last.response.error.message
    assert last.response.output_text == "ab"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(last.response.id)
    assert client.responses.create(model="echo", input="alive").output_text == "user: alive"


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnected_client_frees_the_engine(client: openai.OpenAI, fake_model: EchoModel, stream: bool) -> None:
    if stream:
        events = client.responses.create(model="echo", input="endless", stream=True)
        begun = next(iter(events)).response.id
        events.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.responses.create(model="echo", input="endless", timeout=1)
    assert fake_model.engine.generations[-1].cancelled.wait(PATIENCE_S)  # never if it had ended
    if stream:
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(begun)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "content"),
        ({"input": []}, "input"),
        ({"include": ["everything"]}, "include.0"),
        ({"tools": [{"type": "functions", "name": "f", "parameters": {}}]}, "tools"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"reasoning": {"effort": "highest"}}, "reasoning.effort"),
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"x": "\ud800"}}]}, "tools.0.parameters"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_unsupported_fields_are_refused_by_name(live_server: str, asked: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "echo", "input": "hello"} | asked)
    response = httpx.post(f"{live_server}/v1/responses", content=body, headers={"content-type": "application/json"})
    assert response.status_code == (404 if param == "previous_response_id" else 400)
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("query", ["stream=true", "starting_after=3", "x=1"])
def test_queries_are_refused_by_name_too(client: openai.OpenAI, live_server: str, query: str) -> None:
    response = client.responses.create(model="echo", input="hello")
    url = f"{live_server}/v1/responses/{response.id}"
    assert httpx.get(f"{url}?include_obfuscation=false&stream=false").status_code == 200
    refused = httpx.get(f"{url}?{query}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])
    for wrong in ("limit=0", "order=up", "after=none"):
        assert httpx.get(f"{url}/input_items?{wrong}").status_code == 400


def test_formats_and_choices_reach_the_model_and_are_echoed(client: openai.OpenAI, fake_model: EchoModel) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    response = client.responses.create(
        model="echo",
        input="rain?",
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": form},
    )
    question = fake_model.asked[-1]
    assert (question["tool_choice"], question["parallel_tool_calls"]) == (Function("weather"), False)
    assert question["format"] == Format("json_schema", schema)
    assert response.tool_choice.name == "weather"
    assert response.text.format.schema_ == schema
