"""A template that reads tools from the system message gets tools, calls and results (Phi-4-mini)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_samples import SAMPLES, TOOLS, output_of

from freedive.text.dialects.parser import parse
from freedive.text.message_tools import reads_tools_of_messages
from freedive.text.template import ChatTemplate

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% if m['role'] == 'system' and 'tools' in m "
    "and m['tools'] is not none %}{{ '<|tool|>' + m['tools'] + '<|/tool|>' }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
ASKED: list[dict[str, Any]] = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "Sun"},
]


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate({"default": TEMPLATE}, {}).render(messages, **options)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_tools_calls_and_results_are_in_the_prompt(system: str) -> None:
    text = render([{"role": "system", "content": system}] * bool(system) + ASKED, tools=TOOLS)
    opening, _, rest = text.partition("<|tool|>")
    functions, _, rest = rest.partition("<|/tool|><|end|>")
    assert opening == f"<|system|>{system or 'You are a helpful assistant with some tools.'}"
    assert json.loads(functions) == [tool["function"] for tool in TOOLS]
    user, call, result, end = rest.split("<|end|>")
    assert (user, result, end) == ("<|user|>How is the weather?", "<|tool_response|>Sun", "<|assistant|>")
    dialect = output_of(SAMPLES["Phi-4-mini"], {"role": "assistant", "content": ""})[0]
    (said,) = parse(dialect, call.removeprefix("<|assistant|>"), None, TOOLS).calls
    assert (said.name, json.loads(said.arguments)) == ("weather", {"city": "Zürich"})


def test_without_tools_nothing_is_added() -> None:
    assert render(ASKED[:1]) == "<|user|>How is the weather?<|end|><|assistant|>"


def test_templates_that_take_tools_are_left_alone() -> None:
    assert reads_tools_of_messages(TEMPLATE)
    assert not reads_tools_of_messages(TEMPLATE + "{% if tools %}{% endif %}")
    assert not reads_tools_of_messages(TEMPLATE + "{{ m.tool_calls }}")
    assert not reads_tools_of_messages("{{ messages }}")
