"""Tools as coding agents send them: in namespaces, called with a text, or deferred until a search finds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from echo_model import EchoModel

PATCH = "*** Begin Patch\n+ä\n*** End Patch"
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}
TOOLS: list[Any] = [
    {"type": "custom", "name": "apply_patch", "description": "Edit files.", "format": GRAMMAR},
    {"type": "namespace", "name": "mcp__git", "description": "", "tools": [{"type": "function", "name": "log"}]},
    {"type": "web_search", "external_web_access": False},
]


def calling(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.fixture(scope="module", autouse=True)
def scripted(fake_model: EchoModel) -> None:
    fake_model.script |= {
        "patch!": calling("apply_patch", {"input": PATCH}),
        "log!": calling("mcp__git__log", {"n": 2}),
    }


@pytest.fixture(scope="module")
def client(live_server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live_server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(live_server: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live_server, api_key="none", max_retries=0) as client:
        yield client


def test_a_custom_tool_is_called_with_a_text(client: openai.OpenAI, fake_model: EchoModel) -> None:
    asked: dict[str, Any] = {"model": "echo", "input": "patch!", "tools": TOOLS}
    [call] = client.responses.create(**asked).output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "apply_patch", PATCH)
    shown = fake_model.asked[-1]["tools"][0]["function"]
    assert shown["parameters"]["required"] == ["input"]
    assert "start: /x/" in shown["description"]
    events = list(client.responses.create(**asked, stream=True))
    reported = {event.type: event for event in events}
    assert reported["response.custom_tool_call_input.delta"].delta == PATCH
    assert reported["response.custom_tool_call_input.done"].input == PATCH
    assert events[-1].response.output[0].input == PATCH


def test_a_tool_of_a_namespace_is_called_by_both_names(client: openai.OpenAI, fake_model: EchoModel) -> None:
    [call] = client.responses.create(model="echo", input="log!", tools=TOOLS).output
    assert (call.type, call.namespace, call.name) == ("function_call", "mcp__git", "log")
    names = [tool["function"]["name"] for tool in fake_model.asked[-1]["tools"]]
    assert names == ["apply_patch", "mcp__git__log"]


def test_calls_come_back_under_the_names_that_the_model_gave_them(client: openai.OpenAI, fake_model: EchoModel) -> None:
    items: list[Any] = [
        {"role": "user", "content": "go"},
        {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": PATCH},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "done"},
        {"type": "function_call", "call_id": "b", "namespace": "mcp__git", "name": "log", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "b", "output": "none"},
    ]
    client.responses.create(model="echo", input=items, tools=TOOLS)
    _, patch, done, log, none = fake_model.asked[-1]["messages"]
    [first], [second] = patch["tool_calls"], log["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"input": PATCH}
    assert second["function"]["name"] == "mcp__git__log"
    assert (done["content"], none["content"]) == ("done", "none")


def tool(name: str, **others: Any) -> Any:
    return {"name": name, "description": f"does {name}", "input_schema": {"type": "object"}, **others}


def found(name: str) -> list[Any]:
    call = {"type": "tool_use", "id": "1", "name": "find", "input": {"query": name}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "tool_reference", "tool_name": name}]}
    return [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]


def test_a_deferred_tool_is_shown_where_a_result_refers_to_it(
    claude: anthropic.Anthropic, fake_model: EchoModel
) -> None:
    tools = [tool("find"), tool("late", defer_loading=True)]
    fake_model.script["does late"] = calling("late", {})
    answer = claude.messages.create(model="echo", max_tokens=999, tools=tools, messages=found("late"))
    assert [each["function"]["name"] for each in fake_model.asked[-1]["tools"]] == ["find"]
    assert "does late" in fake_model.asked[-1]["messages"][-1]["content"]
    assert (answer.content[0].type, answer.content[0].name) == ("tool_use", "late")
    del fake_model.script["does late"]
    claude.messages.create(model="echo", max_tokens=999, tools=tools, messages=found("other"))
    assert fake_model.asked[-1]["messages"][-1]["content"] == "There is no tool other"


def test_a_deferred_tool_is_shown_at_once_where_nothing_could_find_it(
    claude: anthropic.Anthropic, fake_model: EchoModel
) -> None:
    search: Any = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    hello: list[Any] = [{"role": "user", "content": "hello"}]
    late, other = tool("late", defer_loading=True), tool("other")
    for tools in ([late, other, search], [late]):
        claude.messages.create(model="echo", max_tokens=99, tools=tools, messages=hello)
        assert "late" in [each["function"]["name"] for each in fake_model.asked[-1]["tools"]]
    choice: Any = {"type": "tool", "name": "late"}
    claude.messages.create(model="echo", max_tokens=99, tools=[late, other], tool_choice=choice, messages=hello)
    assert len(fake_model.asked[-1]["tools"]) == 2


def test_a_tool_reaches_the_template_as_it_came(client: openai.OpenAI, fake_model: EchoModel) -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    for given in (function, function | {"strict": True}, {"name": "f"}):
        tools: Any = [{"type": "function", "function": given, "cache_control": {"type": "ephemeral"}}]
        messages: Any = [{"role": "user", "content": "x"}]
        client.chat.completions.create(model="echo", messages=messages, tools=tools)
        assert fake_model.asked[-1]["tools"][0]["function"] == {"parameters": {}} | given


def test_a_thread_that_was_not_kept_is_not_found(live_server: str) -> None:
    body = {"model": "echo", "max_tokens": 9, "thread": {"type": "continue", "id": "t"}, "messages": []}
    response = httpx.post(f"{live_server}/v1/messages", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (404, "not_found_error")
    assert error["details"] == {"error_code": "thread_not_found"}


def test_a_tool_runner_works_as_it_comes(claude: anthropic.Anthropic, fake_model: EchoModel) -> None:
    fake_model.script = {"tool: 25": "It is 25.", "sum!": calling("add", {"a": 12, "b": 13})} | fake_model.script

    @anthropic.beta_tool
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return str(a + b)

    runner = claude.beta.messages.tool_runner(
        model="echo", max_tokens=999, tools=[add], messages=[{"role": "user", "content": "sum!"}]
    )
    last = runner.until_done().content[0]
    assert last.type == "text"
    assert last.text == "It is 25."


def test_a_number_that_no_client_can_read_is_text_where_arguments_are_objects(
    live_server: str, fake_model: EchoModel
) -> None:
    number = "1e+260625"
    arguments = f'{{"v": [{number}]}}'
    fake_model.script["odd!"] = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    asked = {"model": "echo", "messages": [{"role": "user", "content": "odd!"}], "stream": False}
    function = {"name": "f", "parameters": {"type": "object"}}
    openais = {"tools": [{"type": "function", "function": function}]}

    def post(route: str, body: dict[str, Any]) -> Any:
        return httpx.post(f"{live_server}{route}", json=body).raise_for_status().json()

    claudes = {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "max_tokens": 9999}
    assert post("/v1/messages", asked | claudes)["content"][-1]["input"] == {"v": [number]}
    [call] = post("/api/chat", asked | openais)["message"]["tool_calls"]
    assert call["function"]["arguments"] == {"v": [number]}
    answer = post("/v1/chat/completions", asked | openais)["choices"][0]["message"]
    assert answer["tool_calls"][0]["function"]["arguments"] == arguments
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "ok"}
    assert post("/v1/chat/completions", asked | openais | {"messages": [*asked["messages"], answer, result]})
    custom = asked | {"input": "odd!", "tools": [{"type": "custom", "name": "f"}]}
    del custom["messages"]
    assert post("/v1/responses", custom)["output"][-1]["input"] == arguments
