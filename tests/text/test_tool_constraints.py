"""Calls that a constraint allows are parsed by the same dialect as calls with valid arguments."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from constrained import follow, write
from dialect_samples import QUESTION, SAMPLES
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from freedive.errors import UserError
from freedive.text.arguments import argument_values
from freedive.text.dialects.codecs import kinds, parameter_schemas
from freedive.text.dialects.dialect import Dialect, State, initial_state
from freedive.text.dialects.parser import Answer, parse
from freedive.text.dialects.registry import dialect_for
from freedive.text.format import Format
from freedive.text.grammar_constraint import GrammarCompiler, GrammarConstraint
from freedive.text.output_spec import OutputSpec, constrain
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer
from freedive.text.tools import Function


def tool(name: str, strict: bool = False, **properties: Any) -> dict[str, Any]:
    required = [key for key, schema in properties.items() if not (isinstance(schema, dict) and schema.get("default"))]
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}}


WEATHER = tool(
    "weather",
    city={"type": "string"},
    days={"type": "integer", "minimum": 1, "maximum": 9},
    unit={"enum": ["C", "F", "a <b>"]},
    exact={"type": ["boolean", "null"], "default": True},
    note={"anyOf": [{"type": "string"}, {"type": "null"}], "default": "x"},
    limits={"type": "array", "items": {"type": "integer"}, "maxItems": 2, "default": [1]},
)
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
NO_ARGUMENTS = {"type": "object", "maxProperties": 0}
ARGUMENTS = {tool["function"]["name"]: tool["function"].get("parameters", NO_ARGUMENTS) for tool in TOOLS}
WRITES = [name for name, sample in SAMPLES.items() if sample.max_calls]


def tokenizer_of(folder: Path, tokens: set[str]) -> Tokenizer:
    """Returns a tokenizer of bytes and the special ``tokens``."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = tokenizers.Tokenizer(models.BPE(alphabet, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text) for text in ["<end>", *sorted(tokens)]])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return Tokenizer.from_folder(folder)


class Asked:
    """The model of one family: its markers are special tokens, or all of them are text."""

    def __init__(self, name: str, folder: Path, *, special: bool) -> None:
        sample = SAMPLES[name]
        self.dialect = dialect_for(sample.source, sample.added_tokens)
        tokens = {
            text for text in (*self.dialect.marks, *self.dialect.separators) if text[0] + text[-1] in ("<>", "[]")
        }
        self.tokenizer = tokenizer_of(folder, tokens if special else set())
        self.compiler = GrammarCompiler(self.tokenizer, tokens.__contains__)
        self.state = initial_state(self.dialect, sample.render([QUESTION], tools=TOOLS))
        self.reads = self.dialect

    def constraint(self, **wish: Any) -> GrammarConstraint:
        self.reads, make_constraint = constrain(
            OutputSpec(tools=TOOLS, **wish), self.compiler, self.dialect, self.state
        )
        assert make_constraint
        return make_constraint()

    def thought(self) -> str:
        """The text that ends the thought that the prompt has begun, or nothing."""
        return next((m for m, mark in self.dialect.marks.items() if mark.name == "END_THINK"), "") * (
            self.state.mode.name == "THOUGHT"
        )

    def read(self, output: str) -> Answer:
        return parse(self.reads, output, self.state, TOOLS)


def check(said: Answer) -> None:
    for call in said.calls:
        jsonschema.validate(json.loads(call.arguments), ARGUMENTS[call.name])


@pytest.mark.parametrize("special", [True, False], ids=["special", "text"])
@pytest.mark.parametrize("name", WRITES)
def test_a_call_that_must_come_is_one(name: str, special: bool, tmp_path: Path) -> None:
    asked, num_calls = Asked(name, tmp_path, special=special), 0
    for seed in range(12):
        constraint = asked.constraint(choice="required")
        assert follow(constraint, asked.tokenizer, asked.thought())
        output = write(constraint, asked.tokenizer, seed, longest=400)
        if output is None:
            continue
        said = asked.read(asked.thought() + output)
        assert said.calls, output
        assert not said.content.strip(), output
        check(said)
        num_calls += len(said.calls)
    assert num_calls


@pytest.mark.parametrize("name", WRITES)
def test_the_call_is_of_the_function_that_was_named(name: str, tmp_path: Path) -> None:
    asked = Asked(name, tmp_path, special=True)
    for seed in range(4):
        constraint = asked.constraint(choice=Function("now"))
        assert follow(constraint, asked.tokenizer, asked.thought())
        output = write(constraint, asked.tokenizer, seed, longest=400)
        assert output is None or [call.name for call in asked.read(asked.thought() + output).calls] == ["now"]


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "</tool_call>", "days": 2, "unit": "C"}}\n</tool_call>'


@pytest.fixture
def qwen(tmp_path: Path) -> Asked:
    return Asked("Qwen3", tmp_path, special=False)


@pytest.mark.parametrize("before", ["", "Let me see {<tool>}.\n", "<think>\nHm.\n</think>\n\nWell:\n"])
def test_a_strict_tool_may_be_called_or_not(qwen: Asked, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEATHER["function"], "strict", True)
    constraint = qwen.constraint()
    assert follow(constraint, qwen.tokenizer, before + CALL + "<end>")
    said = qwen.read(before + CALL)
    assert [(call.name, json.loads(call.arguments)["city"]) for call in said.calls] == [("weather", "</tool_call>")]
    assert follow(qwen.constraint(), qwen.tokenizer, before + "Nothing to call.<end>")
    assert not follow(qwen.constraint(), qwen.tokenizer, before + CALL.replace("2", '"2"'))
    assert not follow(qwen.constraint(), qwen.tokenizer, before + CALL.replace("weather", "whether"))


def test_without_parallel_calls_there_is_one(qwen: Asked) -> None:
    assert follow(qwen.constraint(choice="required"), qwen.tokenizer, CALL + "\n" + CALL)
    assert not follow(qwen.constraint(choice="required", parallel=False), qwen.tokenizer, CALL + "\n" + CALL)
    assert not follow(qwen.constraint(parallel=False), qwen.tokenizer, "Well: " + CALL + "\n" + CALL)


def test_an_answer_has_its_format_or_is_a_call(qwen: Asked) -> None:
    wish = {"format": Format("choice", ["yes", "no"])}
    assert follow(qwen.constraint(**wish), qwen.tokenizer, "<think>Hm.</think>\n\nyes")
    assert follow(qwen.constraint(**wish), qwen.tokenizer, "<think>Hm.</think>\n\n" + CALL)
    assert not follow(qwen.constraint(**wish), qwen.tokenizer, "<think>Hm.</think>\n\nI")


def test_a_model_without_format_or_tools_has_no_constraint(qwen: Asked) -> None:
    assert constrain(OutputSpec(tools=TOOLS), qwen.compiler, qwen.dialect, State()) == (qwen.dialect, None)
    assert constrain(OutputSpec(), qwen.compiler, qwen.dialect, State()) == (qwen.dialect, None)


def test_a_text_that_a_model_writes_in_tags_is_not_cut(tmp_path: Path) -> None:
    asked = Asked("Qwen3-Coder", tmp_path, special=False)
    head, tail = (
        "<tool_call>\n<function=weather>\n<parameter=city>\n",
        "\n</parameter>\n<parameter=days>\n3\n</parameter>\n",
    )
    tail += "<parameter=unit>\na <b>\n</parameter>\n</function>\n</tool_call>"
    text = 'Zürich "<b>"\n  </parameter> 7'
    assert follow(asked.constraint(choice="required"), asked.tokenizer, head + text + tail)
    assert json.loads(asked.read(head + text + tail).calls[0].arguments) == {"city": text, "days": 3, "unit": "a <b>"}
    for marker in ("<parameter=days>", "</function>", "<function="):
        assert not follow(asked.constraint(choice="required"), asked.tokenizer, head + marker)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schema", "words"),
    [
        ("Qwen3", {"not": {"pattern": "a"}}, "not"),
        ("Qwen3", None, "no schema"),
        ("Qwen3", ["string"], "no schema"),
        ("Qwen3", "string", "no schema"),
        ("Qwen3-Coder", None, "no schema"),
        ("Qwen3-Coder", ["string"], "no schema"),
        ("Qwen3-Coder", "string", "no schema"),
        ("Qwen3-Coder", False, "no value"),
        ("Qwen3-Coder", {"enum": []}, "no value"),
        ("Qwen3-Coder", {"not": {"type": "string"}}, "only a condition"),
        ("Qwen3-Coder", {"type": "string", "pattern": "a"}, "pattern"),
        ("Qwen3-Coder", {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]}, "minimum"),
        ("Qwen3-Coder", {"enum": ["1", 2]}, "could be text or not"),
        ("Qwen3-Coder", {"$ref": "#/nowhere"}, "ref"),
    ],
)
def test_unsupported_parameters_are_refused_by_name(
    name: str, schema: dict[str, Any], words: str, tmp_path: Path
) -> None:
    asked = Asked(name, tmp_path, special=True)
    with pytest.raises(UserError, match=words) as caught:
        constrain(OutputSpec(tools=[tool("f", strict=True, x=schema)]), asked.compiler, asked.dialect, asked.state)
    assert caught.value.param == "tools"


PLAIN = Dialect({})


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        (OutputSpec(tools=TOOLS, choice="required"), "tool_choice"),
        (OutputSpec(tools=TOOLS, choice=Function("now")), "tool_choice"),
        (OutputSpec(tools=[tool("f", strict=True)]), "tools"),
        (OutputSpec(tools=TOOLS, parallel=False), "parallel_tool_calls"),
        (OutputSpec(Format("json_object"), TOOLS), "response_format"),
        (OutputSpec(choice="required"), "tool_choice"),
        (OutputSpec(tools=TOOLS, choice=Function("then")), "tool_choice"),
        (OutputSpec(tools=TOOLS, choice="now"), "tool_choice"),
    ],
)
def test_a_model_with_unknown_calls_refuses_constraints_on_them(qwen: Asked, wish: OutputSpec, param: str) -> None:
    with pytest.raises(UserError) as caught:
        constrain(wish, qwen.compiler, PLAIN, State())
    assert caught.value.param == param


def test_a_template_without_tools_refuses_them() -> None:
    ChatTemplate({"default": "{{ tools }}"}, {}).check(TOOLS)
    ChatTemplate({"default": "{{ messages }}"}, {}).check([])
    with pytest.raises(UserError, match="has no tools") as caught:
        ChatTemplate({"default": "{{ messages }}"}, {}).check(TOOLS)
    assert caught.value.param == "tools"


def test_every_token_keeps_its_place(qwen: Asked) -> None:
    """The bits of a constraint have the token ids of the tokenizer."""
    constraint = qwen.constraint(choice="required")
    bits = np.unpackbits(constraint.allowed(), bitorder="little")
    texts = {qwen.tokenizer.token_text(token) for token in np.flatnonzero(bits)}
    assert texts == {"<", " ", "\n"}


# --- schemas of users ---------------------------------------------------------------------------------------------


def coder(tmp_path: Path, schema: Any, text: str, *, name: str = "Qwen3-Coder") -> bool:
    """Returns whether a model that writes calls in tags may write a call with ``text`` for its one parameter."""
    asked = Asked(name, tmp_path, special=False)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"v": schema}}}}]
    tools[0]["function"]["parameters"]["required"] = ["v"]
    make_constraint = constrain(OutputSpec(tools=tools, choice="required"), asked.compiler, asked.dialect, asked.state)[
        1
    ]
    assert make_constraint
    call = f"<tool_call>\n<function=f>\n<parameter=v>\n{text}\n</parameter>\n</function>\n</tool_call>"
    return follow(make_constraint(), asked.tokenizer, call)


ANNOTATED = {"x-order": 1, "readOnly": True, "nullable": True, "$id": "a", "discriminator": {}, "examples": None}


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        (True, "any\ntext", None),
        ({"anyOf": [True, {"type": "null"}]}, "any text", None),
        ({"anyOf": [False, {"enum": ["ab", "c"]}]}, "ab", "d"),
        ({"type": "string", **ANNOTATED}, "any text", None),
        ({"type": "integer", **ANNOTATED}, "12", "a"),
        ({"type": "string", "format": "password"}, "x", None),
        ({"type": "string", "minLength": 2, "maxLength": 3}, "ab", "a"),
        ({"type": "string", "maxLength": 3}, "é\n日", "abcd"),
        ({"enum": ["a\0b"]}, "a\0b", "ab"),
        ({"type": "array", "items": {"enum": ["a\0b"]}}, r'["a\u0000b"]', '["ab"]'),
        ({"type": "integer", "minimum": -(2**63)}, "-5", "x"),
    ],
)
def test_tagged_calls_accept_schemas_of_users(schema: Any, yes: str, no: str | None, tmp_path: Path) -> None:
    assert coder(tmp_path, schema, yes)
    assert no is None or not coder(tmp_path, schema, no)


@pytest.mark.parametrize("parameters", [True, {"properties": None}, {"type": ["object", "null"]}, None, {}])
@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-Coder"])
def test_parameters_that_ask_for_nothing_are_none(name: str, parameters: Any, tmp_path: Path) -> None:
    asked = Asked(name, tmp_path, special=False)
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    reads, make_constraint = constrain(
        OutputSpec(tools=tools, choice="required"), asked.compiler, asked.dialect, asked.state
    )
    assert make_constraint
    output = write(make_constraint(), asked.tokenizer, 1, longest=2000)
    assert output is None or parse(reads, output, asked.state, tools).calls[0].name == "f"


@pytest.mark.parametrize("parameters", [[], "x", 7, {"properties": True}, {"properties": []}, {"type": "string"}])
@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-Coder"])
def test_parameters_that_are_no_schema_are_refused(name: str, parameters: Any, tmp_path: Path) -> None:
    asked = Asked(name, tmp_path, special=False)
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}]
    with pytest.raises(UserError) as caught:
        constrain(OutputSpec(tools=tools, choice="required"), asked.compiler, asked.dialect, asked.state)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("number", ["1e+260625", "-1e999", "1" * 5000])
@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-Coder"])
def test_numbers_that_python_cannot_read_are_passed_on_as_they_were_written(
    name: str, number: str, tmp_path: Path
) -> None:
    asked = Asked(name, tmp_path, special=False)
    output = {
        "Qwen3": f'<tool_call>\n{{"name": "f", "arguments": {{"v": [{number}, "é"]}}}}\n</tool_call>',
        "Qwen3-Coder": "<tool_call>\n<function=f>\n<parameter=v>\n"
        + f'[{number}, "é"]\n</parameter>\n</function>\n</tool_call>',
    }[name]
    said = parse(asked.dialect, output, State(), [tool("f", v={"type": "array"})])
    assert [call.arguments for call in said.calls] == [f'{{"v": [{number}, "é"]}}']
    assert argument_values(said.calls[0].arguments) == {"v": [number, "é"]}


# --- tools that are not strict ------------------------------------------------------------------------------------

CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}}, "required": ["kind"]}
UNKEPT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a set": (
        {"properties": {"v": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}},
        {"v": [1, 1]},
    ),
    "an email": ({"properties": {"v": {"type": "string", "pattern": r"^(?!\.)[^@]+@.+$"}}}, {"v": "a@b"}),
    "a long number": ({"properties": {"v": {"const": 2**53 + 1}}}, {"v": 3}),
    "another document": ({"properties": {"v": {"$ref": "https://example.com/x"}}}, {"v": "a"}),
    "a union": (
        {"anyOf": [{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/d"}], "$defs": {"c": CAT, "d": DOG}},
        {"kind": "cat", "lives": 9},
    ),
    "an overlap": ({"properties": {"v": {"oneOf": [{"type": "string"}, {"pattern": "a"}]}}}, {"v": "a"}),
    "a condition": ({"properties": {"v": {"not": {"pattern": "b"}}}}, {"v": "a"}),
    "names": ({"propertyNames": {"enum": ["v"]}, "additionalProperties": {"type": "string"}}, {"v": "a"}),
    "a date": ({"properties": {"v": {"type": "string", "format": "date"}}}, {"v": "2020-02-02"}),
    "most": ({"properties": {"v": {}, "w": {}}, "maxProperties": 1}, {"v": "a"}),
    "one of two": (
        {"properties": {"v": {}}, "required": ["u"], "anyOf": [{"required": ["v"]}, {"required": ["w"]}]},
        {"v": "a", "u": "b"},
    ),
    "least": ({"properties": {"v": {}}, "minProperties": 2}, {"v": "a"}),
}


def written(name: str, arguments: dict[str, Any]) -> str:
    """Returns a call of f as the model writes it."""
    if name == "Qwen3":
        return f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    inside = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>"


@pytest.mark.parametrize("kind", UNKEPT)
@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-Coder"])
def test_unsupported_parameters_are_unconstrained_unless_a_tool_is_strict(name: str, kind: str, tmp_path: Path) -> None:
    asked = Asked(name, tmp_path, special=False)
    parameters, arguments = UNKEPT[kind]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", **parameters}}}]
    for wish in ({"choice": "required"}, {"parallel": False}, {"format": Format("choice", ["yes"])}):
        reads, make_constraint = constrain(OutputSpec(tools=tools, **wish), asked.compiler, asked.dialect, asked.state)
        assert make_constraint
        assert follow(
            make_constraint(), asked.tokenizer, "<think>a</think>\n\n" * (name == "Qwen3") + written(name, arguments)
        )
        said = parse(reads, written(name, arguments), State(), tools).calls
        assert [json.loads(call.arguments) for call in said] == [arguments]


def test_supported_parameters_of_a_tool_that_is_not_strict_are_constrained(tmp_path: Path) -> None:
    for name in ("Qwen3", "Qwen3-Coder"):
        asked = Asked(name, tmp_path, special=False)
        kept = {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}
        wish = OutputSpec(tools=[tool("f", **kept)], choice="required")
        make_constraint = constrain(wish, asked.compiler, asked.dialect, asked.state)[1]
        assert make_constraint
        for arguments, allowed_ in (
            ({"a": 1, "b": [1]}, True),
            ({"a": "x", "b": [1]}, False),
            ({"a": 1, "b": ["x"]}, False),
        ):
            assert follow(make_constraint(), asked.tokenizer, written(name, arguments)) == allowed_


RECURSIVE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}},
            "required": ["value"],
        }
    },
}


@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-Coder"])
def test_parameters_behind_a_reference_are_kept_to_and_read_by_type(name: str, tmp_path: Path) -> None:
    asked = Asked(name, tmp_path, special=False)
    tools = [{"type": "function", "function": {"name": "f", "parameters": RECURSIVE, "strict": True}}]
    reads, make_constraint = constrain(
        OutputSpec(tools=tools, choice="required"), asked.compiler, asked.dialect, asked.state
    )
    assert make_constraint
    arguments = {"value": 1, "next": {"value": 2}}
    assert follow(make_constraint(), asked.tokenizer, written(name, arguments))
    assert not follow(make_constraint(), asked.tokenizer, written(name, {"value": "x"}))
    assert json.loads(parse(reads, written(name, arguments), State(), tools).calls[0].arguments) == arguments


ITEM = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.mark.parametrize(
    ("parameters", "yes", "no"),
    [
        ({"properties": {"v": {"allOf": [{"$ref": "#/$defs/i"}], "default": {}}}}, {"v": {"x": 1}}, {"v": {"x": "a"}}),
        ({"allOf": [{"$ref": "#/$defs/i"}, {"properties": {"y": {"type": "string"}}}]}, {"x": 1, "y": "b"}, {"y": "b"}),
        ({"properties": {"v": {"allOf": [{"minimum": 3}, {"type": "integer"}]}}}, {"v": 3}, {"v": 2}),
    ],
)
def test_what_tagged_parameters_have_in_all_of_is_kept_to_and_read_by_type(
    parameters: dict[str, Any], yes: dict[str, Any], no: dict[str, Any], tmp_path: Path
) -> None:
    asked = Asked("Qwen3-Coder", tmp_path, special=False)
    function = {"name": "f", "parameters": {**parameters, "$defs": {"i": ITEM}}, "strict": True}
    wish = OutputSpec(tools=[{"type": "function", "function": function}], choice="required")
    reads, make_constraint = constrain(wish, asked.compiler, asked.dialect, asked.state)
    assert make_constraint
    assert follow(make_constraint(), asked.tokenizer, written("Qwen3-Coder", yes))
    assert not follow(make_constraint(), asked.tokenizer, written("Qwen3-Coder", no))
    said = parse(reads, written("Qwen3-Coder", yes), State(), wish.tools).calls
    assert json.loads(said[0].arguments) == yes


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [False]},
        {"allOf": [{"type": "integer", "minimum": 3}, {"minimum": 4}]},
        {"allOf": [{"type": "array", "prefixItems": [{"type": "string"}]}, {"items": {"type": "integer"}}]},
    ],
)
def test_all_of_that_speaks_twice_of_one_thing_is_not_taken_for_less(schema: dict[str, Any], tmp_path: Path) -> None:
    with contextlib.suppress(UserError):
        asked = Asked("Qwen3-Coder", tmp_path, special=False)
        make_constraint = constrain(
            OutputSpec(tools=[tool("f", strict=True, v=schema)]), asked.compiler, asked.dialect, asked.state
        )[1]
        assert make_constraint
        for value in ("a", 3, ["a"]):
            text = written("Qwen3-Coder", {"v": value})
            assert not follow(make_constraint(), asked.tokenizer, text) or value == ["a"]


@pytest.mark.parametrize("depth", [3, 4000])
def test_choices_of_properties_are_read_however_many_and_however_deep(depth: int) -> None:
    wide = {"anyOf": [{"properties": {"v": {"type": "integer"}}}] * depth}
    looped = {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}, {"properties": {"v": {"type": "integer"}}}]}]}
    for parameters in (wide, looped):
        assert kinds(parameter_schemas([{"function": {"name": "f", "parameters": parameters}}])["f"]["v"]) == {
            "integer"
        }
