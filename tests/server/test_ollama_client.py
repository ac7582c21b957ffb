"""Ollama's official client library against a live server."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import ollama
import pytest
from echo_model import EchoModel
from ollama_setup import HELLO, SAID, refusal
from patience import PATIENCE_S

from freedive.text.format import Format


def test_chat_answers(ollama_client: ollama.Client) -> None:
    answer = ollama_client.chat(model="echo", messages=HELLO)
    assert (answer.model, answer.message.role, answer.message.content) == ("echo", "assistant", SAID)
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert answer.prompt_eval_count == answer.eval_count == len(SAID)
    assert answer.message.thinking is answer.message.tool_calls is answer.logprobs is None


def test_durations_are_nanoseconds(ollama_client: ollama.Client) -> None:
    started = time.monotonic_ns()
    answer = ollama_client.generate(model="echo", prompt="hello")
    assert 1_000_000 * len("hello") < answer.eval_duration < answer.total_duration < time.monotonic_ns() - started
    assert 0 < answer.load_duration < answer.total_duration
    assert 0 < answer.prompt_eval_duration < answer.total_duration


def test_chat_streams_lines_and_the_last_one_has_the_totals(ollama_client: ollama.Client) -> None:
    *parts, last = ollama_client.chat(model="echo", messages=HELLO, stream=True)
    assert "".join(part.message.content for part in parts) == SAID
    assert len(parts) > 5
    assert not any(part.done for part in parts)
    assert (last.message.content, last.done, last.done_reason, last.eval_count) == ("", True, "stop", len(SAID))


def test_streams_are_the_default_and_json_by_the_line(http: httpx.Client) -> None:
    response = http.post("/api/generate", json={"model": "echo", "prompt": "hello"})
    assert response.headers["content-type"] == "application/x-ndjson"
    parts = [json.loads(part) for part in response.text.splitlines()]
    assert "".join(part["response"] for part in parts) == SAID
    assert parts[0].keys() == {"model", "created_at", "response", "done"}
    assert parts[0]["created_at"].endswith("Z")


def test_the_asynchronous_client_streams(live_server: str) -> None:
    async def answer() -> str:
        async with ollama.AsyncClient(host=live_server) as client:
            stream = await client.chat(model="echo", messages=HELLO, stream=True)
            return "".join([part.message.content async for part in stream])

    assert asyncio.run(answer()) == SAID


THOUGHTFUL = "<think>\nTwo and two.\n</think>\n\nFour."


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_a_field_of_their_own(ollama_client: ollama.Client, fake_model: EchoModel, stream: bool) -> None:
    fake_model.script["two and two"] = THOUGHTFUL
    asked = {"model": "echo", "stream": stream}
    chat = ollama_client.chat(messages=[{"role": "user", "content": "two and two"}], **asked)
    messages = [part.message for part in (chat if stream else [chat])]
    assert "".join(message.thinking or "" for message in messages) == "Two and two."
    assert "".join(message.content for message in messages) == "Four."
    text = ollama_client.generate(prompt="two and two", **asked)
    parts = list(text) if stream else [text]
    assert "".join(part.thinking or "" for part in parts) == "Two and two."
    assert "".join(part.response for part in parts) == "Four."


@pytest.mark.parametrize(
    ("think", "asked"),
    [
        (None, {"thinking": None}),
        (True, {"thinking": True}),
        (False, {"thinking": False}),
        ("high", {"effort": "high"}),
    ],
)
def test_thinking_is_asked_of_the_model(
    ollama_client: ollama.Client, fake_model: EchoModel, think: Any, asked: dict[str, Any]
) -> None:
    for ask in (
        lambda: ollama_client.chat("echo", HELLO, think=think),
        lambda: ollama_client.generate("echo", "hi", think=think),
    ):
        ask()
        assert asked.items() <= fake_model.asked[-1].items()


def weather(city: str) -> str:
    """Tell the weather.

    Args:
      city: Where
    """
    return f"rain in {city}"


CALLING = 'Let me see.\n<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_have_objects_as_arguments(
    ollama_client: ollama.Client, fake_model: EchoModel, stream: bool
) -> None:
    fake_model.script["rain?"] = CALLING
    answer = ollama_client.chat("echo", [{"role": "user", "content": "rain?"}], tools=[weather], stream=stream)
    parts = list(answer) if stream else [answer]
    [call] = [call for part in parts for call in part.message.tool_calls or ()]
    assert weather(**call.function.arguments) == "rain in Köln"
    assert "".join(part.message.content for part in parts) == "Let me see."
    assert parts[-1].done_reason == "stop"
    function = fake_model.asked[-1]["tools"][0]["function"]
    assert (function["name"], function["description"]) == ("weather", "Tell the weather.")
    assert function["parameters"]["properties"]["city"]["type"] == "string"


def test_calls_and_results_reach_the_template_with_ids_that_match(
    ollama_client: ollama.Client, fake_model: EchoModel
) -> None:
    def call(name: str, **arguments: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": arguments}}

    calls = [call("weather", city="Köln"), call("clock"), call("weather", city="Bonn")]
    results = [("clock", "noon"), ("weather", "rain"), ("weather", "sun")]
    ollama_client.chat(
        "echo",
        [
            *HELLO,
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": calls},
            *({"role": "tool", "tool_name": name, "content": text} for name, text in results),
        ],
    )
    _, asked, *answered = fake_model.asked[-1]["messages"]
    ids = ["call00000", "call00001", "call00002"]
    assert asked["tool_calls"] == [{"id": id, "type": "function"} | call for id, call in zip(ids, calls, strict=True)]
    assert (asked["content"], asked["reasoning_content"]) == ("", "hm")
    assert [(result["name"], result["tool_call_id"]) for result in answered] == [
        ("clock", ids[1]),
        ("weather", ids[0]),
        ("weather", ids[2]),
    ]


def test_ids_that_clients_send_are_kept(http: httpx.Client, fake_model: EchoModel) -> None:
    call = {"id": "c7", "type": "function", "function": {"index": 0, "name": "clock", "arguments": {}}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "c7"},
    ]
    http.post("/api/chat", json={"model": "echo", "messages": messages}).raise_for_status()
    asked, answered = fake_model.asked[-1]["messages"]
    assert asked["tool_calls"][0]["id"] == answered["tool_call_id"] == "c7"


def test_options_reach_the_sampler(ollama_client: ollama.Client, fake_model: EchoModel) -> None:
    options = {
        "temperature": 0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 7,
        "stop": ["xyz"],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "num_predict": 4,
        "num_thread": 1,
    }
    answer = ollama_client.generate("echo", "hello", options=options)
    assert (answer.response, answer.done_reason, answer.eval_count) == (SAID[:4], "length", 4)
    sampling = fake_model.engine.generations[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 5, 0.5, 0.1)
    assert (sampling.seed, sampling.stop, sampling.max_tokens) == (7, ("xyz",), 4)
    assert sampling.repetition_penalty == 1.1
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)


def test_stop_strings_end_the_answer(ollama_client: ollama.Client) -> None:
    answer = ollama_client.generate("echo", "hello", options={"stop": ["lo"]})
    assert (answer.response, answer.done_reason) == ("user: hel", "stop")


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_no_limit_and_no_seed_have_numbers_of_their_own(
    ollama_client: ollama.Client, fake_model: EchoModel, limit: int
) -> None:
    ollama_client.generate("echo", "hello", options={"num_predict": limit, "seed": -1})
    sampling = fake_model.engine.generations[-1].sampling
    assert sampling.max_tokens is sampling.seed is None


def test_num_ctx_bounds_prompt_and_answer_together(ollama_client: ollama.Client) -> None:
    answer = ollama_client.generate("echo", "hello", options={"num_ctx": len(SAID) + 3})
    assert (answer.eval_count, answer.done_reason) == (3, "length")


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(ollama_client: ollama.Client, stream: bool) -> None:
    answer = ollama_client.generate("echo", "hello", logprobs=True, top_logprobs=2, stream=stream)
    entries = [entry for part in (answer if stream else [answer]) for entry in part.logprobs or ()]
    assert "".join(entry.token for entry in entries) == SAID
    assert [top.token for top in entries[0].top_logprobs] == ["u", "?"]


def test_generate_without_a_template_with_a_system_prompt_and_with_a_gap(ollama_client: ollama.Client) -> None:
    assert ollama_client.generate("echo", "hello", raw=True).response == "hello"
    assert ollama_client.generate("echo", "hello", system="Be kind.").response == "system: Be kind.\nuser: hello"
    assert ollama_client.generate("echo", "def f(", suffix="): pass").response == "def f([gap]): pass"


@pytest.mark.parametrize("ask", ["chat", "generate", "show"])
def test_an_unknown_model_is_not_found(ollama_client: ollama.Client, ask: str) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        getattr(ollama_client, ask)("nothing")
    assert "Served models: echo" in refusal(caught, 404)


def test_nothing_is_truncated(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="The prompt has 5006 tokens"):
        ollama_client.generate("echo", "x" * 5000)


def test_overload_is_reported(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        ollama_client.generate("echo", "overload")
    refusal(caught, 429)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_failure_is_reported_and_the_server_continues(
    ollama_client: ollama.Client, fake_model: EchoModel, stream: bool
) -> None:
    fake_model.script["boom"] = "ab\N{COLLISION SYMBOL}"
    with pytest.raises(ollama.ResponseError, match="the server's log has it as req-"):
        list(ollama_client.generate("echo", "boom", stream=stream))
    assert ollama_client.generate("echo", "alive", raw=True).response == "alive"


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnected_client_frees_the_engine(live_server: str, fake_model: EchoModel, stream: bool) -> None:
    fake_model.script["endless"] = "word " * 5000
    with ollama.Client(host=live_server, timeout=None if stream else 1) as hasty:
        if stream:
            answer = hasty.generate("echo", "endless", stream=True)
            next(answer)
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                hasty.generate("echo", "endless")
    assert fake_model.engine.generations[-1].cancelled.wait(PATIENCE_S)


def test_the_format_reaches_the_model(ollama_client: ollama.Client, fake_model: EchoModel) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for asked, format in (("json", Format("json_object")), (schema, Format("json_schema", schema)), ("", None)):
        ollama_client.chat("echo", messages=[{"role": "user", "content": "hello"}], format=asked)
        assert fake_model.asked[-1]["format"] == format
        ollama_client.generate("echo", "hello", raw=True, format=asked)
        assert fake_model.engine.generations[-1].submitted["constraint"] == format


def test_embeddings_old_and_new(ollama_client: ollama.Client) -> None:
    answer = ollama_client.embed("echo", ["area", "sky"])
    assert answer.embeddings == [[4, 1], [3, 3]]
    assert answer.prompt_eval_count == 7
    assert ollama_client.embed("echo", "sky").embeddings == [[3, 3]]
    assert ollama_client.embeddings("echo", "sky").embedding == [3, 3]
    with pytest.raises(ollama.ResponseError, match="'dimensions' is not supported"):
        ollama_client.embed("echo", "sky", dimensions=2)
