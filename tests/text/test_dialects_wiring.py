"""From tokens to a message and back: decoding keeps markers, and calls reach a template in its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freedive.text.dialects.dialect import Dialect
from freedive.text.dialects.parser import Parser, joined
from freedive.text.dialects.registry import dialect_for
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer

CALL = {"name": "f", "arguments": {"ort": "Zürich"}}


@pytest.fixture(scope="module")
def tokenizer(byte_level_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer like DeepSeek's: the special token in a DSML marker is only a part of the marker."""
    folder = tmp_path_factory.mktemp("dsml")
    core = json.loads((byte_level_folder / "tokenizer.json").read_text())
    like = core["added_tokens"][0]
    core["added_tokens"].append(like | {"id": core["added_tokens"][-1]["id"] + 1, "content": "｜DSML｜"})
    (folder / "tokenizer.json").write_text(json.dumps(core))
    return Tokenizer.from_folder(folder)


def test_a_dialects_special_tokens_are_kept_and_others_are_not(tokenizer: Tokenizer) -> None:
    output = (
        '<think>Hm.</think>Hi!<｜DSML｜tool_calls><｜DSML｜invoke name="f"><｜DSML｜parameter name="ort" string="true">'
        "Zürich</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜tool_calls><|im_end|>"
    )
    dialect = dialect_for("", tokenizer.added_tokens.values())
    parser, stream = Parser(dialect), tokenizer.stream(is_visible=dialect.is_visible)
    texts = [*map(stream.push, tokenizer.encode(output)), stream.flush()]
    assert "".join(texts) == output.removesuffix("<|im_end|>")
    said = joined([*(event for text in texts for event in parser.feed(text)), *parser.finish()])
    assert (said.content, said.reasoning) == ("Hi!", "Hm.")
    assert [(call.name, json.loads(call.arguments)) for call in said.calls] == [("f", CALL["arguments"])]


def test_a_plain_dialect_keeps_no_special_token(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream(is_visible=Dialect({}).is_visible)
    assert "".join(map(stream.push, tokenizer.encode("a<|im_end|>｜DSML｜<think>"))) == "a<think>"


def rendered(turn: str, call: Any = CALL, **message: Any) -> str:
    template = ChatTemplate({"default": "{% for m in messages %}" + turn + "{% endfor %}"}, {})
    calls = [{"type": "function", "function": call}]
    return template.render([{"role": "assistant", "tool_calls": calls} | message])


@pytest.mark.parametrize("given", [{"ort": "Zürich"}, '{"ort":"Zürich"}'])
@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("{{ a | tojson }}", '{"ort": "Zürich"}'),
        ("{{ a }}", '{"ort": "Zürich"}'),
        ("{{ '<' + a + '>' }}", '<{"ort": "Zürich"}>'),
        ("{{ '<' ~ a ~ '>' }}", '<{"ort": "Zürich"}>'),
        ("{{ a if a is string else a | tojson }}", '{"ort": "Zürich"}'),
        ("{% for k, v in a | items %}{{ k }}={{ v }}{% endfor %}", "ort=Zürich"),
        ("{% for k, v in a.items() %}{{ k }}={{ v }}{% endfor %}", "ort=Zürich"),
        ("{{ a.ort if a is mapping }}", "Zürich"),
    ],
)
def test_arguments_are_an_object_and_its_text(given: Any, written: str, text: str) -> None:
    turn = "{% set a = m.tool_calls[0].function.arguments %}" + written
    assert rendered(turn, CALL | {"arguments": given}) == text


@pytest.mark.parametrize("given", ["{no", "[1]", "7"])
def test_arguments_that_are_no_object_stay_as_they_are(given: str) -> None:
    assert rendered("{{ m.tool_calls[0].function.arguments }}", CALL | {"arguments": given}) == given


@pytest.mark.parametrize("given", [None, "{no", '{"city": "Par', "[1]", "7", [1], 7])
@pytest.mark.parametrize(
    "turn", ["{{ a | tojson }}", "{% for k, v in a | items %}{% endfor %}", "{{ a.items() }}{{ a + '' }}"]
)
def test_arguments_that_are_no_object_do_not_end_the_conversation(turn: str, given: Any) -> None:
    turn = "{% set a = m.tool_calls[0].function.arguments %}" + turn
    assert rendered(turn, CALL | {"arguments": given}) is not None


def test_missing_arguments_are_an_empty_object() -> None:
    assert rendered("{{ m.tool_calls[0].function.arguments | tojson }}", CALL | {"arguments": ""}) == "{}"


@pytest.mark.parametrize("call", [7, {"function": 7}, {"function": {}}, {"arguments": 7}])
def test_odd_calls_are_left_to_the_template(call: Any) -> None:
    template = ChatTemplate({"default": "{{ messages[0].tool_calls | tojson }}"}, {})
    assert json.loads(template.render([{"role": "assistant", "tool_calls": [call]}])) == [call]


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ("{{ m.content + '!' if m.tool_calls }}", "!"),
        ("{% if m['content'] is none %}{{ m.tool_calls[0].function.name }}{% endif %}", "f"),
        ("{% if m['content'] is none or m['content'] == '' %}{{ m.tool_calls|length }}{{ m.content }}{% endif %}", "1"),
    ],
)
@pytest.mark.parametrize("content", [None, ""])
def test_calls_without_a_text_have_the_content_that_the_template_asks_for(
    turn: str, text: str, content: str | None
) -> None:
    assert rendered(turn, content=content) == text
