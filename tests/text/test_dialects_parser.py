"""Detection of the dialect and of the start of the output, and outputs that are not quite correct."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_samples import SAMPLES, TOOLS

from freedive.text.dialects.codecs import coerced
from freedive.text.dialects.dialect import Call, Dialect, Mode, State, initial_state
from freedive.text.dialects.parser import Answer, parse
from freedive.text.dialects.registry import dialect_for

HERMES = dialect_for("<think> <tool_call>", [])
XML = dialect_for("<function=", [])
LLAMA3 = dialect_for("", ["<|python_tag|>"])
HARMONY = dialect_for("<|channel|>", [])
THINKING = State(Mode.THOUGHT, after_marker=True)


def known(name: str) -> Dialect:
    return dialect_for(SAMPLES[name].source, SAMPLES[name].added_tokens)


def test_an_unknown_template_means_plain_text() -> None:
    assert dialect_for("{{ messages }}", ["<s>", "</s>"]) == Dialect({})
    assert dialect_for("", []) == Dialect({})


def test_the_template_decides_before_the_vocabulary() -> None:
    assert "<|tool_call|>" not in dialect_for("<tool_call>", ["<|tool_call|>", "<tool_call>"]).marks


@pytest.mark.parametrize("suffix", [":opensource", ":x", ""])
def test_hunyuans_suffix_is_read_from_the_vocabulary(suffix: str) -> None:
    dialect = dialect_for("", ["<｜hy_User｜>", f"<tool_calls{suffix}>", f"<tool_sep{suffix}>", f"<think{suffix}>"])
    assert {f"<think{suffix}>", f"</tool_calls{suffix}>", f"<tool_call{suffix}>"} <= dialect.marks.keys()


@pytest.mark.parametrize(
    ("dialect", "prompt", "state"),
    [
        (HERMES, "What is <think>?<|im_end|>\n<|im_start|>assistant\n", State()),
        (HERMES, "<|im_start|>assistant\n<think>\n", THINKING),
        (HERMES, "<|im_start|>assistant\n<think>\n\n</think>\n\n", State(Mode.TEXT, after_marker=True)),
        (known("DeepSeek V3.1"), "<｜Assistant｜></think>", State(Mode.TEXT, after_marker=True)),
        (known("Hy3"), "<｜hy_Assistant:opensource｜><think:opensource>", THINKING),
        (known("Granite 3.2"), "<|start_of_role|>assistant<|end_of_role|>", State()),
        (known("Hunyuan A13B"), "<think>\n</think>\n<answer>\n", State(Mode.TEXT, after_marker=True, in_answer=True)),
        (HARMONY, "<|start|>user<|message|>Hi<|end|><|start|>assistant", State(Mode.HEADER)),
        (Dialect({}), "<think>", State()),
    ],
)
def test_a_prompt_says_where_the_output_begins(dialect: Dialect, prompt: str, state: State) -> None:
    assert initial_state(dialect, prompt) == state


@pytest.mark.parametrize(
    ("dialect", "output"),
    [
        (HERMES, "An answer about <think> and </think>."),
        (HERMES, '<tool_call>\n{"name": "now", "arguments": {"a": NaN}}\n</tool_call>  Sorry'),
        (HERMES, '<tool_call>{"name": "now", "arguments": "no"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "now", "thought": "that would be lost"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "now", "arguments": {"a": "\\ud800"}}</tool_call>'),
        (HERMES, "<tool_call>[]</tool_call>"),
        (HERMES, "Here: \n\n <tool_call>" + "[" * 100_000),
        (HERMES, '<tool_call>{"name": "now", "argum'),
        (XML, "<function=now>\n<parameter=a>\n1\n</parameter>\n"),
        (XML, "<function=now>\n<parameter=a>\n1\n</function>"),
        (XML, "<function=now>\nword<parameter=a>\n1\n</parameter>\n</function>"),
        (XML, "<function=now>\n<parameter=a>1</parameter><parameter=a>2</parameter></function>"),
        (LLAMA3, '{"name": "unknown", "parameters": {}}'),
        (LLAMA3, '{"name": "now", "parameters": {}} and more'),
        (LLAMA3, "<|python_tag|>print('Hi')"),
        (LLAMA3, "[a link](https://example.org)"),
        (known("Llama 4"), "[now(1)]"),
        (known("Llama 4"), "[now(**{'a': 1})]"),
        (known("Llama 4"), "[now(a=open('x'))]"),
        (known("Llama 4"), "[now(a={1, 2})]"),
        (known("Llama 4"), f"[now(a={'-' * 60_000}1)]"),
        (HARMONY, "<|channel|>analysis of mine<|message|>Hi"),
        (HARMONY, "<|start|>assistant to=functions.now<|channel|>commentary<|message|>{no}<|call|>"),
    ],
)
def test_output_that_cannot_be_parsed_is_shown_unchanged(dialect: Dialect, output: str) -> None:
    assert parse(dialect, output, tools=TOOLS) == Answer(output, "", ())


def test_a_call_after_a_mention_of_its_marker_is_read() -> None:
    said = parse(HERMES, 'I write <tool_call>: <tool_call>{"name": "now"}</tool_call>')
    assert said == Answer("I write <tool_call>: ", "", (Call("now", "{}"),))


def test_markers_that_wrap_an_answer_are_left_out() -> None:
    hunyuan = known("Hunyuan A13B")
    assert parse(hunyuan, "<answer>\nHi </b>\n</answer>").content == "Hi </b>"
    assert parse(hunyuan, "Hi\n</answer>", initial_state(hunyuan, "<answer>")).content == "Hi"
    assert parse(hunyuan, "Write </answer> at the end").content == "Write </answer> at the end"


def test_a_bare_call_counts_only_where_tools_were_given() -> None:
    output = '{"name": "now", "parameters": {}}'
    assert parse(LLAMA3, output) == Answer(output, "", ())
    assert parse(LLAMA3, output, tools=TOOLS) == Answer("", "", (Call("now", "{}"),))


def test_a_truncated_thought_stays_a_thought() -> None:
    assert parse(HERMES, "I wonder <too", THINKING) == Answer("", "I wonder <too", ())


@pytest.mark.parametrize("name", ["Kimi K2", "DeepSeek R1", "Hy3"])
def test_special_tokens_of_a_call_end_a_thought(name: str) -> None:
    section = next(marker for marker in known(name).marks if "tool" in marker)
    assert parse(known(name), f"Hm.{section}x", THINKING) == Answer("x", "Hm.", ())


def test_a_models_own_ids_are_kept() -> None:
    kimi = parse(known("Kimi K2"), "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>")
    mistral = parse(known("Mistral Small 3.2"), '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefgh1"}]')
    assert [said.calls[0].id for said in (kimi, mistral)] == ["functions.now:3", "abcdefgh1"]


def test_builtin_tools_of_llama_are_called_in_pythons_syntax() -> None:
    said = parse(LLAMA3, '<|python_tag|>brave_search.call(query="x")')
    assert said.calls == (Call("brave_search.call", '{"query": "x"}'),)


def test_values_may_hold_what_looks_like_a_tag() -> None:
    code = "<a href='x'>\n  if a < b: print('</parameter>')\n</a>"
    said = parse(XML, f"<function=now>\n<parameter=code>\n{code}\n</parameter>\n</function>")
    assert json.loads(said.calls[0].arguments) == {"code": code}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "integer"}, 5),
        ("5", {"type": "string"}, "5"),
        ("5", None, "5"),
        ("5", {}, "5"),
        ("5.5", {"type": "integer"}, "5.5"),
        ("5", {"type": "number"}, 5),
        ("true", {"type": "boolean"}, True),
        ("True", {"type": "boolean"}, True),
        ("true", {"type": "integer"}, "true"),
        ("None", {"type": ["string", "null"]}, None),
        ("none", {"type": ["string", "null"]}, "none"),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ("['C', None]", {"anyOf": [{"type": "array"}, {"type": "null"}]}, ["C", None]),
        ("{1, 2}", {"type": "array"}, "{1, 2}"),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
        ("2", {"enum": [1, 2, "auto"]}, 2),
        ("auto", {"enum": [1, 2, "auto"]}, "auto"),
        ("5", {"type": 7}, "5"),
        ("5", {"anyOf": None}, "5"),
    ],
)
def test_untyped_values_get_the_type_of_their_schema(text: str, schema: Any, value: Any) -> None:
    found = coerced(text, schema)
    assert (found, type(found)) == (value, type(value))
