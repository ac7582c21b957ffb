"""Ollama's official client library against a live server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest
from echo_model import EchoModel, known, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_requests import values

from freedive.errors import NotFound
from freedive.server.about import About
from freedive.server.models import Known
from freedive.server.ollama import pull as pulling
from freedive.server.ollama.fields import ChatRequest, GenerateRequest
from freedive.server.ollama.options import Options
from freedive.server.ollama.pull import Progress

HELLO = [{"role": "user", "content": "hello"}]
SAID = "user: hello"


@pytest.fixture(scope="module")
def client(live_server: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=live_server) as client:
        yield client


@pytest.fixture(scope="module")
def http(live_server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server) as client:
        yield client


def refusal(caught: pytest.ExceptionInfo[ollama.ResponseError], status: int = 400) -> str:
    assert caught.value.status_code == status
    return str(caught.value.error)


def test_chat_answers(client: ollama.Client) -> None:
    answer = client.chat(model="echo", messages=HELLO)
    assert (answer.model, answer.message.role, answer.message.content) == ("echo", "assistant", SAID)
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert answer.prompt_eval_count == answer.eval_count == len(SAID)
    assert answer.message.thinking is answer.message.tool_calls is answer.logprobs is None


def test_durations_are_nanoseconds(client: ollama.Client) -> None:
    started = time.monotonic_ns()
    answer = client.generate(model="echo", prompt="hello")
    assert 1_000_000 * len("hello") < answer.eval_duration < answer.total_duration < time.monotonic_ns() - started
    assert 0 < answer.load_duration < answer.total_duration
    assert 0 < answer.prompt_eval_duration < answer.total_duration


def test_chat_streams_in_lines_and_the_last_one_sums_up(client: ollama.Client) -> None:
    *parts, last = client.chat(model="echo", messages=HELLO, stream=True)
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
def test_thoughts_come_apart(client: ollama.Client, fake_model: EchoModel, stream: bool) -> None:
    fake_model.script["two and two"] = THOUGHTFUL
    asked = {"model": "echo", "stream": stream}
    chat = client.chat(messages=[{"role": "user", "content": "two and two"}], **asked)
    messages = [part.message for part in (chat if stream else [chat])]
    assert "".join(message.thinking or "" for message in messages) == "Two and two."
    assert "".join(message.content for message in messages) == "Four."
    text = client.generate(prompt="two and two", **asked)
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
    client: ollama.Client, fake_model: EchoModel, think: Any, asked: dict[str, Any]
) -> None:
    for ask in (lambda: client.chat("echo", HELLO, think=think), lambda: client.generate("echo", "hi", think=think)):
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
def test_tool_calls_have_objects_as_arguments(client: ollama.Client, fake_model: EchoModel, stream: bool) -> None:
    fake_model.script["rain?"] = CALLING
    answer = client.chat("echo", [{"role": "user", "content": "rain?"}], tools=[weather], stream=stream)
    parts = list(answer) if stream else [answer]
    [call] = [call for part in parts for call in part.message.tool_calls or ()]
    assert weather(**call.function.arguments) == "rain in Köln"
    assert "".join(part.message.content for part in parts) == "Let me see."
    assert parts[-1].done_reason == "stop"
    function = fake_model.asked[-1]["tools"][0]["function"]
    assert (function["name"], function["description"]) == ("weather", "Tell the weather.")
    assert function["parameters"]["properties"]["city"]["type"] == "string"


def test_calls_and_results_reach_the_template_with_ids_that_match(client: ollama.Client, fake_model: EchoModel) -> None:
    def call(name: str, **arguments: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": arguments}}

    calls = [call("weather", city="Köln"), call("clock"), call("weather", city="Bonn")]
    results = [("clock", "noon"), ("weather", "rain"), ("weather", "sun")]
    client.chat(
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


def test_options_reach_the_sampler(client: ollama.Client, fake_model: EchoModel) -> None:
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
    answer = client.generate("echo", "hello", options=options)
    assert (answer.response, answer.done_reason, answer.eval_count) == (SAID[:4], "length", 4)
    sampling = fake_model.engine.generations[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 5, 0.5, 0.1)
    assert (sampling.seed, sampling.stop, sampling.max_tokens) == (7, ("xyz",), 4)
    assert sampling.repetition_penalty == 1.1
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)


def test_stop_strings_end_the_answer(client: ollama.Client) -> None:
    answer = client.generate("echo", "hello", options={"stop": ["lo"]})
    assert (answer.response, answer.done_reason) == ("user: hel", "stop")


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_no_limit_and_no_seed_have_numbers_of_their_own(
    client: ollama.Client, fake_model: EchoModel, limit: int
) -> None:
    client.generate("echo", "hello", options={"num_predict": limit, "seed": -1})
    sampling = fake_model.engine.generations[-1].sampling
    assert sampling.max_tokens is sampling.seed is None


def test_num_ctx_bounds_prompt_and_answer_together(client: ollama.Client) -> None:
    answer = client.generate("echo", "hello", options={"num_ctx": len(SAID) + 3})
    assert (answer.eval_count, answer.done_reason) == (3, "length")


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: ollama.Client, stream: bool) -> None:
    answer = client.generate("echo", "hello", logprobs=True, top_logprobs=2, stream=stream)
    entries = [entry for part in (answer if stream else [answer]) for entry in part.logprobs or ()]
    assert "".join(entry.token for entry in entries) == SAID
    assert [top.token for top in entries[0].top_logprobs] == ["u", "?"]


def test_generate_without_a_template_with_a_system_prompt_and_with_a_gap(client: ollama.Client) -> None:
    assert client.generate("echo", "hello", raw=True).response == "hello"
    assert client.generate("echo", "hello", system="Be kind.").response == "system: Be kind.\nuser: hello"
    assert client.generate("echo", "def f(", suffix="): pass").response == "def f([gap]): pass"


def test_an_empty_request_loads_or_unloads() -> None:
    model = EchoModel()
    with serving(model) as url, ollama.Client(host=url) as client:
        assert client.chat("echo", keep_alive=0).done_reason == "unload"
        assert model.closed
        assert client.ps().models == []
        assert client.generate("echo", keep_alive="1h30m").done_reason == "load"
        [running] = client.ps().models
        remaining_s = running.expires_at.timestamp() - time.time()
        assert 5395 < remaining_s < 5405
        assert [part.done_reason for part in client.generate("echo", keep_alive=-1, stream=True)] == ["load"]
        assert client.ps().models[0].expires_at.year == 9999


def test_a_model_is_unloaded_after_its_answer_when_nobody_is_to_wait() -> None:
    model = EchoModel()
    with serving(model) as url, ollama.Client(host=url) as client:
        assert client.generate("echo", "hello", keep_alive="0s").response == SAID
        deadline = time.monotonic() + 5
        while client.ps().models and time.monotonic() < deadline:
            time.sleep(0.05)
        assert model.closed


ABOUT = About(
    family="qwen3moe",
    num_params=30_532_122_624,
    format="Q4_K",
    max_context=40960,
    hidden_dim=2048,
    template="{{ messages }}",
    sampling={"temperature": 0.6, "top_k": 20},
    capabilities=("completion", "tools"),
)


def test_models_are_listed_and_shown() -> None:
    with serving(EchoModel(about=ABOUT)) as url, ollama.Client(host=url) as client:
        [listed] = client.list().models
        assert (listed.model, listed.size, listed.modified_at.timestamp()) == ("echo", 1 << 20, 1_700_000_000)
        assert len(listed.digest) == 64
        assert (listed.details.parameter_size, listed.details.quantization_level) == ("30.5B", "Q4_K")
        [running] = client.ps().models
        assert (running.name, running.size, running.size_vram, running.context_length) == ("echo", 1 << 20, 0, 4096)
        assert running.digest == listed.digest
        shown = client.show("echo:latest")
        assert (shown.template, shown.capabilities) == ("{{ messages }}", ["completion", "tools"])
        assert [row.split() for row in shown.parameters.splitlines()] == [["temperature", "0.6"], ["top_k", "20"]]
        assert shown.modelinfo["general.architecture"] == shown.details.family == "qwen3moe"
        assert shown.modelinfo["qwen3moe.context_length"] == 40960
        older = httpx.post(f"{url}/api/show", json={"name": "echo"}).json()
        assert older["model_info"] == shown.modelinfo


def test_clients_see_that_somebody_is_there_and_how_new(http: httpx.Client) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        response = http.head(path)
        assert (response.status_code, response.content) == (200, b"")
    assert http.get("/api/version").json().keys() == {"version", "freedive"}


def test_latest_is_no_other_model(client: ollama.Client) -> None:
    answer = client.chat("echo:latest", HELLO)
    assert (answer.model, answer.message.content) == ("echo:latest", SAID)


def test_what_is_here_already_is_pulled_at_once(client: ollama.Client) -> None:
    assert client.pull("echo:latest").status == "success"
    assert [state.status for state in client.pull("echo", stream=True)] == ["pulling manifest", "success"]


def test_a_server_of_given_models_pulls_no_others(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull("other")
    assert "freedive pull other" in refusal(caught)


def test_a_pull_tells_its_progress_and_the_model_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "TICK_S", 0.01)
    told = threading.Event()

    def fetch(name: str, progress: Progress) -> Known:
        if name != "new":
            raise NotFound(f"There is no model named {name}")
        progress.total = 10
        progress.advance(4)
        assert told.wait(5)
        return known(EchoModel(name=name))

    with serving(EchoModel(), fetch=fetch) as url, ollama.Client(host=url) as client:
        states = client.pull("new", stream=True)
        assert next(states).status == "pulling manifest"
        state = next(states)
        assert (state.completed, state.total) == (4, 10)
        told.set()
        assert list(states)[-1].status == "success"
        assert client.generate("new", "hello").response == SAID
        with pytest.raises(ollama.ResponseError, match="There is no model named nothing"):
            list(client.pull("nothing", stream=True))
        with pytest.raises(ollama.ResponseError) as caught:
            client.pull("nothing")
        refusal(caught, 404)


@pytest.mark.parametrize("stream", [False, True])
def test_a_pull_goes_on_without_its_client_and_holds_up_no_server(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(pulling, "TICK_S", 0.01)
    may_end, ended = threading.Event(), threading.Event()

    def fetch(name: str, progress: Progress) -> Known:
        progress.total = 10
        assert threading.current_thread().daemon
        assert may_end.wait(5)
        ended.set()
        return known(EchoModel(name=name))

    with serving(EchoModel(), fetch=fetch) as url, ollama.Client(host=url, timeout=0.3) as client:
        if stream:
            states = client.pull("new", stream=True)
            assert [next(states).total for _ in range(2)] == [None, 10]
            states.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.pull("new")
        assert [model.model for model in client.list().models] == ["echo"]
    may_end.set()
    assert ended.wait(5)


def test_what_would_change_the_files_of_this_machine_is_refused_with_a_remedy(client: ollama.Client) -> None:
    for attempt in (
        lambda: client.create("mine", from_="echo"),
        lambda: client.copy("echo", "other"),
        lambda: client.push("echo"),
        lambda: client.delete("echo"),
        lambda: client.create_blob(__file__),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            attempt()
        assert "is not supported by this server" in refusal(caught)


@pytest.mark.parametrize("ask", ["chat", "generate", "show"])
def test_an_unknown_model_is_not_found(client: ollama.Client, ask: str) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        getattr(client, ask)("nothing")
    assert "There are: echo" in refusal(caught, 404)


def test_nothing_is_truncated(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="The prompt has 5006 tokens"):
        client.generate("echo", "x" * 5000)


def test_overload_is_told(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate("echo", "overload")
    refusal(caught, 429)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_failure_is_told_and_survived(client: ollama.Client, fake_model: EchoModel, stream: bool) -> None:
    fake_model.script["boom"] = "ab\N{COLLISION SYMBOL}"
    with pytest.raises(ollama.ResponseError, match="the server's log has it as req-"):
        list(client.generate("echo", "boom", stream=stream))
    assert client.generate("echo", "alive", raw=True).response == "alive"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(live_server: str, fake_model: EchoModel, stream: bool) -> None:
    fake_model.script["endless"] = "word " * 5000
    with ollama.Client(host=live_server, timeout=0.3) as hasty:
        if stream:
            answer = hasty.generate("echo", "endless", stream=True)
            next(answer)
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                hasty.generate("echo", "endless")
    assert fake_model.engine.generations[-1].cancelled.wait(2)


CHAT = {"model": "echo", "messages": HELLO}
TEXT = {"model": "echo", "prompt": "hello"}


@pytest.mark.parametrize(
    ("route", "extra", "param"),
    [
        ("chat", {"format": "json"}, "format"),
        ("chat", {"format": {"type": "object"}}, "format"),
        ("chat", {"think": "hard"}, "think"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("chat", {"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]}, "tool_calls"),
        ("chat", {"messages": [{"role": "teacher", "content": "x"}]}, "role"),
        ("chat", {"tools": [{"type": "function", "function": {"name": "f g"}}]}, "name"),
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"truncate": True}, "truncate"),
        ("chat", {"shift": True}, "shift"),
        ("chat", {"keep_alive": "soon"}, "keep_alive"),
        ("chat", {"keep_alive": "5"}, "keep_alive"),
        ("chat", {"prompt": "x"}, "prompt"),
        ("chat", {"options": {"mirostat": 2}}, "mirostat"),
        ("chat", {"options": {"typical_p": 0.7}}, "typical_p"),
        ("chat", {"options": {"repeat_last_n": 64}}, "repeat_last_n"),
        ("chat", {"options": {"temprature": 1}}, "temprature"),
        ("chat", {"options": {"num_ctx": 5000}}, "num_ctx"),
        ("chat", {"options": {"num_ctx": 5}}, "num_ctx"),
        ("chat", {"options": {"num_ctx": 20, "num_predict": 10}}, "num_ctx"),
        ("chat", {"options": {"repeat_penalty": -1}}, "repeat_penalty"),
        ("chat", {"options": {"num_predict": 2**31}}, "num_predict"),
        ("generate", {"images": ["aGk="]}, "images"),
        ("generate", {"context": [1, 2]}, "context"),
        ("generate", {"template": "{{ .Prompt }}"}, "template"),
        ("generate", {"raw": True, "system": "x"}, "system"),
        ("generate", {"suffix": "x", "think": True}, "think"),
        ("generate", {"width": 64}, "width"),
        ("show", {"system": "x"}, "system"),
        ("show", {"model": ""}, "model"),
        ("pull", {"insecure": True}, "insecure"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    http: httpx.Client, route: str, extra: dict[str, Any], param: str
) -> None:
    body = {"chat": CHAT, "generate": TEXT}.get(route, {"model": "echo"}) | extra
    response = http.post(f"/api/{route}", json=body)
    assert response.status_code == 400, response.text
    assert response.json().keys() == {"error"}
    assert param in response.json()["error"]


def test_what_asks_for_nothing_is_accepted(http: httpx.Client) -> None:
    options = {
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "typical_p": 1.0,
        "num_keep": 4,
        "repeat_last_n": -1,
        "use_mmap": True,
    }
    nothing = {"format": "", "images": [], "context": [], "template": "", "truncate": False, "options": options}
    assert http.post("/api/generate", json=TEXT | nothing).status_code == 200


def test_texts_that_no_encoding_can_write_are_refused(http: httpx.Client) -> None:
    call = {"function": {"name": "f", "arguments": {"a": "\ud800"}}}
    body = json.dumps(CHAT | {"messages": [{"role": "assistant", "tool_calls": [call]}]})
    response = http.post("/api/chat", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, "arguments" in response.json()["error"]) == (400, True)


fields = sorted(ChatRequest.model_fields | GenerateRequest.model_fields)
options = st.fixed_dictionaries({"options": st.dictionaries(st.sampled_from(sorted(Options.model_fields)), values)})


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([CHAT, TEXT]), st.dictionaries(st.sampled_from(fields), values, max_size=3) | options)
def test_no_body_is_a_server_error(
    http: httpx.Client, fake_model: EchoModel, valid: dict[str, Any], changes: dict[str, Any]
) -> None:
    fake_model.delay_s = 0
    body = json.dumps({"stream": False} | valid | changes)
    for route in ("chat", "generate", "show"):
        response = http.post(f"/api/{route}", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404)
        assert response.status_code == 200 or response.json().keys() == {"error"}
