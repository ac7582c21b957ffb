"""Anthropic's official client library against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx
import pytest
from echo_model import EchoModel, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S

from freedive.server import stream
from freedive.server.anthropic.fields import MessagesRequest
from freedive.server.anthropic.turns import BLOCKS
from freedive.text.format import Format
from freedive.text.tools import Function

HELLO = [{"role": "user", "content": "hello"}]
ASKED = {"model": "echo", "max_tokens": 1000, "messages": HELLO}
WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALLING = 'Let me see.\n<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
THOUGHTFUL = "<think>\nTwo and two,\nthat is.\n</think>\n\nIt is four, <think> me."


@pytest.fixture(scope="module")
def client(live_server: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live_server, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def scripted(fake_model: EchoModel) -> None:
    fake_model.script |= {"rain?": CALLING, "two and two": THOUGHTFUL, "boom": "ab\N{COLLISION SYMBOL}"}


def asking(text: str, **others: Any) -> dict[str, Any]:
    return ASKED | {"messages": [{"role": "user", "content": text}]} | others


def test_an_answer_is_a_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**ASKED)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "echo")
    assert [block.model_dump(exclude_unset=True) for block in answer.content] == [
        {"type": "text", "text": "user: hello"}
    ]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.input_tokens == answer.usage.output_tokens == len("user: hello")
    assert answer.usage.cache_read_input_tokens == answer.usage.cache_creation_input_tokens == 0
    assert answer.id.startswith("msg_")
    assert answer._request_id.startswith("req-")


def test_a_stream_has_the_start_deltas_and_stop_of_each_block(client: anthropic.Anthropic) -> None:
    first, *events, delta, last = client.messages.create(**ASKED, stream=True)
    assert (first.type, first.message.content, first.message.stop_reason) == ("message_start", [], None)
    assert first.message.usage.input_tokens == len("user: hello")
    assert [events[0].type, events[-1].type] == ["content_block_start", "content_block_stop"]
    assert len(events) > 7
    assert "".join(event.delta.text for event in events[1:-1]) == "user: hello"
    assert {event.index for event in events} == {0}
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("end_turn", len("user: hello"))
    assert last.type == "message_stop"


@pytest.mark.parametrize(
    "asked",
    [
        asking("hello"),
        asking("two and two"),
        asking("two and two", thinking={"type": "adaptive", "display": "omitted"}),
        asking("rain?", tools=[WEATHER]),
        asking("hello", max_tokens=3),
        asking("hello", stop_sequences=["lo"]),
    ],
)
def test_streamed_and_whole_an_answer_is_the_same(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message().to_dict(exclude_none=True)
    whole = client.messages.create(**asked).to_dict(exclude_none=True)
    for answer in (streamed, whole):
        del answer["id"]
        for block in answer["content"]:
            block.pop("id", None)
    assert streamed == whole


def test_thoughts_are_blocks_before_the_answer(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**asking("two and two"))
    assert [block.to_dict() for block in answer.content] == [
        {"type": "thinking", "thinking": "Two and two,\nthat is.", "signature": ""},
        {"type": "text", "text": "It is four, <think> me."},
    ]
    thought = THOUGHTFUL.index("</think>") + len("</think>") - len("<think>")
    assert answer.usage.output_tokens_details.thinking_tokens == thought


def test_thoughts_can_be_omitted(client: anthropic.Anthropic) -> None:
    omitted = asking("two and two", thinking={"type": "adaptive", "display": "omitted"})
    answer = client.messages.create(**omitted)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == ""
    assert all(event.delta.type != "thinking_delta" for event in _deltas(client, omitted))


@pytest.mark.parametrize("display", ["summarized", "updates", "highlights"])
def test_thoughts_are_shown_whole_in_other_displays(client: anthropic.Anthropic, display: str) -> None:
    shown = asking("two and two", thinking={"type": "adaptive", "display": display})
    assert client.messages.create(**shown).content[0].thinking == "Two and two,\nthat is."
    assert any(event.delta.type == "thinking_delta" for event in _deltas(client, shown))


def _deltas(client: anthropic.Anthropic, asked: dict[str, Any]) -> list[Any]:
    return [event for event in client.messages.create(**asked, stream=True) if event.type == "content_block_delta"]


@pytest.mark.parametrize(
    ("fields", "thinking", "effort"),
    [
        ({}, None, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, True, "high"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False, None),
        ({"output_config": {"effort": "low"}}, None, "low"),
    ],
)
def test_a_model_may_think_as_much_as_it_is_allowed(
    client: anthropic.Anthropic, fake_model: EchoModel, fields: dict[str, Any], thinking: bool | None, effort: str
) -> None:
    client.messages.create(**ASKED, **fields)
    assert (fake_model.asked[-1]["thinking"], fake_model.asked[-1]["effort"]) == (thinking, effort)


def test_permission_to_think_has_no_effect_on_a_model_without_thoughts() -> None:
    model = EchoModel(can_think=False)
    with serving(model) as url, anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        thinking = {"type": "enabled", "budget_tokens": 31999}
        answer = client.messages.create(**ASKED, thinking=thinking, output_config={"effort": "high"})
    assert answer.content[0].text == "user: hello"
    assert model.asked[-1]["thinking_is_advice"]


def test_calls_are_blocks(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    answer = client.messages.create(**asking("rain?", tools=[WEATHER | {"input_examples": [{"city": "Aachen"}]}]))
    text, call = answer.content
    assert (text.text, answer.stop_reason) == ("Let me see.", "tool_use")
    assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Köln"})
    assert call.id.startswith("toolu_")
    schema = WEATHER["input_schema"] | {"examples": [{"city": "Aachen"}]}
    function = {"name": "weather", "description": WEATHER["description"], "parameters": schema}
    assert fake_model.asked[-1]["tools"] == [{"type": "function", "function": function}]


def test_several_calls_are_streamed_one_block_each(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    fake_model.script["twice"] = CALLING + CALLING.removeprefix("Let me see.")
    with client.messages.stream(**asking("twice", tools=[WEATHER])) as stream:
        blocks = stream.get_final_message().content
    assert [block.type for block in blocks] == ["text", "tool_use", "tool_use"]
    assert blocks[1].id != blocks[2].id


def test_without_tools_what_looks_like_a_call_is_text(client: anthropic.Anthropic) -> None:
    for fields in ({}, {"tools": [WEATHER], "tool_choice": {"type": "none"}}):
        answer = client.messages.create(**asking("rain?", **fields))
        assert (answer.content[0].text, answer.stop_reason) == (CALLING, "end_turn")


def test_calls_results_and_thoughts_reach_the_template(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    said = client.messages.create(**asking("rain?", tools=[WEATHER])).content
    thoughts = [
        {"type": "thinking", "thinking": "hm", "signature": "abc"},
        {"type": "redacted_thinking", "data": "def"},
    ]
    calls = [*said, {"type": "tool_use", "id": "c2", "name": "weather", "input": {}, "caller": {"type": "direct"}}]
    results = [
        {"type": "tool_result", "tool_use_id": said[1].id, "content": [{"type": "text", "text": "wet"}]},
        {"type": "tool_result", "tool_use_id": "c2", "content": "no city", "is_error": True},
        {"type": "text", "text": "and now?", "cache_control": {"type": "ephemeral"}},
    ]
    messages = [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": [*thoughts, *calls]},
        {"role": "user", "content": results},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c3"}]},
    ]
    client.messages.create(**ASKED | {"messages": messages})
    functions = [{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "weather", "arguments": {}}]
    ids = (said[1].id, "c2")
    asked = [{"id": id, "type": "function", "function": each} for id, each in zip(ids, functions, strict=True)]
    assert fake_model.asked[-1]["messages"] == [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm", "tool_calls": asked},
        {"role": "tool", "tool_call_id": said[1].id, "content": "wet"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: no city"},
        {"role": "user", "content": "and now?"},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
    ]


def test_adjacent_messages_of_one_role_are_joined(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    messages = [*HELLO, {"role": "user", "content": "again"}, {"role": "system", "content": "be brief"}, *HELLO]
    client.messages.create(**ASKED | {"messages": messages})
    assert fake_model.asked[-1]["messages"] == [
        {"role": "user", "content": "hello\nagain"},
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


BILLING = "x-anthropic-billing-header: cc_version=2.1; cch=0a1b2;"


@pytest.mark.parametrize(
    ("system", "read"),
    [
        ("be brief", ["be brief"]),
        ([{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}], ["be\nbrief"]),
        ([{"type": "text", "text": BILLING}, {"type": "text", "text": "be brief"}], ["be brief"]),
        (f"{BILLING}\nbe brief\n{BILLING}", [f"be brief\n{BILLING}"]),
        (BILLING, []),
        ("", []),
    ],
)
def test_the_system_prompt_is_read_without_what_changes_each_time(
    client: anthropic.Anthropic, fake_model: EchoModel, system: Any, read: list[str]
) -> None:
    client.messages.create(**ASKED, system=system)
    *first, _ = fake_model.asked[-1]["messages"]
    assert first == [{"role": "system", "content": text} for text in read]


def test_the_last_message_of_the_assistant_is_continued(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    client.messages.create(**ASKED | {"messages": [*HELLO, {"role": "assistant", "content": "Hel"}]})
    assert fake_model.asked[-1]["continue_final_message"]
    client.messages.create(**ASKED)
    assert not fake_model.asked[-1]["continue_final_message"]


def test_sampling_reaches_the_engine(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}
    client.messages.create(**ASKED, stop_sequences=["zz"], extra_body=given)
    sampling = fake_model.engine.generations[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 5)
    assert (sampling.max_tokens, sampling.stop) == (1000, ("zz",))


def test_the_user_id_selects_the_queue() -> None:
    assert MessagesRequest.model_validate(ASKED | {"metadata": {"user_id": "u"}}).generation_request().scope.user == "u"
    assert MessagesRequest.model_validate(ASKED).generation_request().scope.user == ""


@pytest.mark.parametrize(
    ("fields", "text", "reason", "sequence"),
    [
        ({"stop_sequences": ["never", "lo"]}, "user: hel", "stop_sequence", "lo"),
        ({"max_tokens": 4}, "user", "max_tokens", None),
        ({"max_tokens": 11}, "user: hello", "end_turn", None),
    ],
)
def test_the_stop_reason_is_reported(
    client: anthropic.Anthropic, fields: dict[str, Any], text: str, reason: str, sequence: str | None
) -> None:
    answer = client.messages.create(**asking("hello", **fields))
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == (text, reason, sequence)


def test_max_tokens_may_exceed_the_context() -> None:
    model = EchoModel(max_context=20, delay_s=0, script={"hello": "x" * 30})
    with serving(model) as url, anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        full = client.messages.create(**ASKED | {"max_tokens": 32000}, timeout=10)
        bounded = client.messages.create(**ASKED | {"max_tokens": 20 - len("user: hello")})
    assert full.usage.output_tokens == 20 - len("user: hello")
    assert (full.stop_reason, bounded.stop_reason) == ("model_context_window_exceeded", "max_tokens")


def test_tokens_are_counted(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    num_answers = len(fake_model.engine.generations)
    counted = client.messages.count_tokens(model="echo", messages=HELLO, system="be brief", tools=[WEATHER])
    assert counted.input_tokens == len("system: be brief\nuser: hello")
    assert fake_model.asked[-1]["tools"]
    assert len(fake_model.engine.generations) == num_answers


def test_deepseek_s_address_works_too(live_server: str) -> None:
    with anthropic.Anthropic(base_url=f"{live_server}/anthropic", api_key="none", max_retries=0) as client:
        assert client.messages.create(**ASKED).content[0].text == "user: hello"
        assert client.messages.count_tokens(model="echo", messages=HELLO).input_tokens == len("user: hello")
        assert [model.id for model in client.models.list()] == ["echo"]


def test_models_are_listed_to_each_client_in_its_own_form(client: anthropic.Anthropic, http: httpx.Client) -> None:
    [model] = client.models.list()
    assert model == client.models.retrieve("echo")
    assert (model.type, model.id, model.max_input_tokens) == ("model", "echo", 4096)
    assert model.created_at == datetime.fromtimestamp(1_700_000_000, UTC)
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("org/none")
    assert caught.value.type == "not_found_error"
    assert http.get("/v1/models").json()["object"] == "list"
    assert http.get("/v1/models/none").json()["error"]["code"] == "not_found"


def test_what_claude_code_sends_is_accepted(client: anthropic.Anthropic) -> None:
    answer = client.beta.messages.create(
        **ASKED,
        betas=["claude-code-20250219", "context-management-2025-06-27"],
        system=[
            {"type": "text", "text": BILLING},
            {"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        tools=[WEATHER | {"eager_input_streaming": True, "cache_control": {"type": "ephemeral"}}],
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        metadata={"user_id": "{}"},
        extra_body={"temperature": 1},
    )
    assert answer.content[0].text == "system: be brief\nuser: hello"


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mcp_servers": [{"type": "url", "name": "m", "url": "http://m"}]}, "'mcp_servers'"),
        ({"safeguards": [{"type": "dangerous_tool_use"}]}, "'safeguards' is not supported"),
        ({"output_config": {"format": {"type": "regex"}}}, "format.type"),
        ({"output_config": {"effort": "highest"}}, "'output_config.effort'"),
        ({"temprature": 1}, "'temprature'"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": None}, "'max_tokens'"),
        ({"thinking": {"type": "between_tools"}}, "'thinking.type'"),
        ({"tool_choice": {"type": "tool"}}, "'name'"),
        ({"tool_choice": {"type": "any", "name": "weather"}}, "'name'"),
        ({"thread": {"type": "fork"}}, "'thread'"),
        ({"tools": [WEATHER | {"name": "a b"}]}, "'tools.0.name'"),
        ({"system": [IMAGE]}, "'image'"),
        ({"messages": []}, "'messages'"),
        ({"messages": [{"role": "user", "content": []}]}, "'messages.0.content'"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [IMAGE]}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "'thinking'"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}
                ]
            },
            "without results",
        ),
    ],
)
def test_unsupported_fields_are_refused_by_name(
    client: anthropic.Anthropic, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**ASKED, extra_body=fields)
    assert caught.value.type == "invalid_request_error"
    assert named in caught.value.api_message
    assert caught.value.request_id.startswith("req-")


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="Served models: echo") as caught:
        client.messages.create(**ASKED | {"model": "claude"})
    assert caught.value.type == "not_found_error"


def test_a_conversation_beyond_the_context_has_the_error_message_that_clients_parse(
    client: anthropic.Anthropic,
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: The prompt has 5006 tokens"):
        client.messages.create(**asking("x" * 5000))


def test_overload_is_a_rate_limit(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**asking("overload"), stream=True)
    assert caught.value.type == "rate_limit_error"
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_failure_is_reported_and_the_server_continues(client: anthropic.Anthropic, stream: bool) -> None:
    with pytest.raises(anthropic.APIStatusError, match="the server's log has it as") as caught:
        list(client.messages.create(**asking("boom"), stream=stream))
    assert caught.value.type == "api_error"
    assert client.messages.create(**ASKED).content[0].text == "user: hello"


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnected_client_frees_the_engine(
    client: anthropic.Anthropic, fake_model: EchoModel, stream: bool
) -> None:
    fake_model.script["endless"] = "word " * 5000
    if stream:
        answer = client.messages.create(**asking("endless"), stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(anthropic.APITimeoutError):
            client.messages.create(**asking("endless"), timeout=1)
    assert fake_model.engine.generations[-1].cancelled.wait(PATIENCE_S)  # never if it had ended


def test_a_silent_stream_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.01)
    with serving(EchoModel(delay_s=0.1)) as url:
        text = httpx.post(f"{url}/v1/messages", json=asking("x", max_tokens=2, stream=True)).text
        with anthropic.Anthropic(base_url=url, api_key="none") as client:
            streamed = list(client.messages.create(**asking("x", max_tokens=2), stream=True))
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in text
    assert streamed[-1].type == "message_stop"


simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
values = simple | st.lists(simple, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "a"]), simple)
kinds = st.sampled_from([kind for kinds in BLOCKS.values() for kind in kinds])
block_fields = st.sampled_from(["text", "thinking", "id", "name", "input", "tool_use_id", "content", "is_error"])
blocks = st.builds(lambda kind, fields: fields | {"type": kind}, kinds, st.dictionaries(block_fields, values))
turns = st.fixed_dictionaries({"role": st.sampled_from([*BLOCKS]), "content": st.lists(blocks, max_size=2) | values})
fields = st.sampled_from(sorted(MessagesRequest.model_fields.keys() | MessagesRequest.unsupported.keys()))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.dictionaries(fields, values, max_size=2) | st.fixed_dictionaries({"messages": st.lists(turns, max_size=3)}))
def test_no_body_is_a_server_error(http: httpx.Client, changes: dict[str, Any]) -> None:
    body = json.dumps(ASKED | {"max_tokens": 1} | changes)
    response = http.post("/v1/messages", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        error = response.json()
        assert (error.keys(), error["error"].keys() - {"details"}) == ({"type", "error"}, {"type", "message"})


@pytest.mark.parametrize(
    ("asked", "choice", "parallel"),
    [
        ({}, "auto", True),
        ({"type": "any"}, "required", True),
        ({"type": "tool", "name": "weather"}, Function("weather"), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
    ],
)
def test_the_choice_of_tools_reaches_the_model(
    client: anthropic.Anthropic, fake_model: EchoModel, asked: dict[str, Any], choice: Any, parallel: bool
) -> None:
    given = {"tool_choice": asked} if asked else {}
    client.messages.create(**asking("rain?", tools=[WEATHER | {"strict": True}], **given))
    question = fake_model.asked[-1]
    assert (question["tool_choice"], question["parallel_tool_calls"]) == (choice, parallel)
    assert question["tools"][0]["function"]["strict"]


def test_the_format_reaches_the_model(client: anthropic.Anthropic, fake_model: EchoModel) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "schema": schema}
    for asked in ({"output_config": {"format": form}}, {"extra_body": {"output_format": form}}):
        client.messages.create(**asking("hello", **asked))
        assert fake_model.asked[-1]["format"] == Format("json_schema", schema)
