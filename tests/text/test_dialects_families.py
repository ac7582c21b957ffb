"""An assistant's turn that a family's chat template writes is parsed back to the same message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_samples import SAMPLES, TOOLS, Sample, output_of

from freedive.text.dialects.parser import Answer, Parser, joined, parse

ARGUMENTS: dict[str, Any] = {"city": 'Zürich "<b>"\n第二行', "days": 2, "units": ["C", 1.5, {}], "exact": None}
CALLS = [
    {"id": "abcdefgh1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}},
    {"id": "abcdefgh2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]


def answer_to(sample: Sample, message: dict[str, Any]) -> Answer:
    """Parses the output whole and letter by letter, with equal results."""
    dialect, state, output = output_of(sample, message)
    whole = parse(dialect, output, state, TOOLS)
    parser = Parser(dialect, state, TOOLS)
    assert joined([*(event for letter in output for event in parser.feed(letter)), *parser.finish()]) == whole
    return whole


@pytest.mark.parametrize("name", SAMPLES)
def test_an_answer_is_read(name: str) -> None:
    sample = SAMPLES[name]
    thoughts = "First,\n\nI greet. {" if sample.thinks else ""
    said = answer_to(sample, {"role": "assistant", "reasoning_content": thoughts, "content": "Hello!\n\n  1 < 2"})
    assert said == Answer("Hello!\n\n  1 < 2", thoughts, ())


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.max_calls])
@pytest.mark.parametrize("content", ["Let me look.", None])
def test_tool_calls_are_read(name: str, content: str | None) -> None:
    sample = SAMPLES[name]
    content = content if sample.says else None
    message = {"role": "assistant", "content": content, "tool_calls": CALLS[: sample.max_calls]}
    thoughts = "The weather, then." if sample.thinks else ""
    said = answer_to(sample, message | {"reasoning_content": thoughts})
    assert (said.content, said.reasoning) == (content or "", thoughts)
    assert [call.name for call in said.calls] == ["weather", "now"][: sample.max_calls]
    assert [json.loads(call.arguments) for call in said.calls] == [ARGUMENTS, {}][: sample.max_calls]


def test_white_space_around_a_key_of_gemma_4_is_no_part_of_it() -> None:
    dialect = output_of(SAMPLES["Gemma 4"], {"role": "assistant", "content": ""})[0]
    output = '<|tool_call>call:weather{ city : <|"|> a {b : 1} <|"|>,\n days\n: 2, units:[{ x y : ""}]}<tool_call|>'
    (call,) = parse(dialect, output, None, TOOLS).calls
    assert json.loads(call.arguments) == {"city": " a {b : 1} ", "days": 2, "units": [{"x y": ""}]}


def test_a_value_of_mimo_keeps_its_line_breaks() -> None:
    """Others write one before and after each value, which is no part of it."""
    output = "<tool_call>\n<function=weather>\n<parameter=city>\n a\n</parameter>\n</function>\n</tool_call>"
    said = {}
    for name in ("MiMo-V2", "Step 3.5"):
        dialect = output_of(SAMPLES[name], {"role": "assistant", "content": ""})[0]
        said[name] = json.loads(parse(dialect, output, None, TOOLS).calls[0].arguments)["city"]
    assert said == {"MiMo-V2": "\n a\n", "Step 3.5": " a"}


@pytest.mark.parametrize(
    "output",
    [
        '<function_calls>weather(city="a) b(", days=2)\nnow()</function_calls>',
        "<function_calls>\n[weather(city='a) b(', days=2), now()]\n</function_calls>",
        '<function_calls>weather( city = "a) b(" ,\n days = 2 ) now( )',
    ],
)
def test_calls_of_olmo_are_read_in_jsons_and_pythons_syntax(output: str) -> None:
    dialect = output_of(SAMPLES["OLMo 3 Instruct"], {"role": "assistant", "content": ""})[0]
    said = parse(dialect, output, None, TOOLS)
    assert [(call.name, json.loads(call.arguments)) for call in said.calls] == [
        ("weather", {"city": "a) b(", "days": 2}),
        ("now", {}),
    ]


def test_messages_of_solar_open_may_follow_each_other() -> None:
    dialect, state, _ = output_of(SAMPLES["Solar Open"], {"role": "assistant", "content": ""})
    begin = "<|end|><|begin|>assistant"
    call = "<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|>"
    said = parse(dialect, f"<|think|>A <|{begin}<|content|>Hi.<|flush|>", state, TOOLS)
    assert said == Answer("Hi.", "A <|", ())
    said = parse(dialect, f"<|content|>Hm.{begin}<|tool_calls|>{call}<|calls|>", state, TOOLS)
    assert (said.content, [call.id for call in said.calls]) == ("Hm.", ["a1b2c3d4e5"])
    assert parse(dialect.without_calls(), f"<|content|>Hm.{begin}<|content|>Ha.", state).content == "Hm.Ha."
    assert parse(dialect, "No header at all", state, TOOLS) == Answer("No header at all", "", ())


def test_a_thought_of_muse_glimmer_may_end_without_a_mark() -> None:
    dialect, state, _ = output_of(SAMPLES["Muse Glimmer"], {"role": "assistant", "content": ""})
    said = parse(dialect, " to=self<|message|>Hm. <|start|>assistant to=user<|message|>Hi.<|eot|>", state, TOOLS)
    assert said == Answer("Hi.", "Hm.", ())
