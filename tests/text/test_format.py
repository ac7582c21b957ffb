"""Text that a constraint allows matches the requested format, and unsupported formats are refused."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import jsonschema
import pytest
from constrained import follow, smollm2, valid_json, write
from schemas import WRITTEN, generated

from freedive.errors import UserError
from freedive.text import grammar_constraint as guide_module
from freedive.text.dialects.dialect import Dialect, Mark, Mode, State
from freedive.text.dialects.parser import parse
from freedive.text.dialects.registry import dialect_for
from freedive.text.format import Format, Kind
from freedive.text.grammar_constraint import GrammarCompiler, GrammarConstraint
from freedive.text.grammar_worker import compile_grammar
from freedive.text.lark import Lark
from freedive.text.output_spec import OutputSpec, constrain

SCHEMAS = [*WRITTEN, *map(generated, range(180))]
THINKS = dialect_for("<think></think>", ())
HERMES = dialect_for("<think></think><tool_call>", ())
WRAPS = dialect_for("<think></think><answer></answer>", ())
GRANITE = dialect_for("Here is my thought process:", ())
HARMONY = dialect_for("<|channel|>", ())
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMATS = jsonschema.FormatChecker(["date", "ipv4", "ipv6", "uuid", "email"])
"""Without those of RFC 3339, which allows a lower-case z, unlike jsonschema."""
JSON = '{"name": "Ada", "age": 36}'


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(smollm2(), lambda text: False)


def constraint_of(compiler: GrammarCompiler, form: Format) -> GrammarConstraint:
    lark = Lark(compiler.tokens)
    return compiler.compile(lark.rules(lark.part(form.grammar)), lark.parts)()


def test_there_are_many_schemas() -> None:
    assert len(SCHEMAS) >= 200


@pytest.mark.parametrize("start", range(0, len(SCHEMAS), 20))
def test_generated_text_is_valid_under_the_schema(compiler: GrammarCompiler, start: int) -> None:
    finished = 0
    for number, schema in enumerate(SCHEMAS[start : start + 20], start):
        checker = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
        for seed in range(2):
            text = write(constraint_of(compiler, Format("json_schema", schema)), smollm2(), seed * 1000 + number)
            if text is not None:
                checker.validate(valid_json(text))
                finished += 1
    assert finished > 20  # of 40 texts


@pytest.mark.parametrize("seed", range(5))
def test_a_json_object_is_one(compiler: GrammarCompiler, seed: int) -> None:
    text = write(constraint_of(compiler, Format("json_object")), smollm2(), seed, longest=2000)
    assert text is None or isinstance(valid_json(text), dict)


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-f]+", r"(yes|no)\.", r"a/b|é\d", r"\p{Lu}x?", "héllo"])
def test_the_whole_answer_matches_a_regular_expression(compiler: GrammarCompiler, pattern: str) -> None:
    for seed in range(5):
        text = write(constraint_of(compiler, Format("regex", pattern)), smollm2(), seed)
        assert text is None or re.fullmatch(pattern.replace(r"\p{Lu}", r"[^\W\d_a-zß-öø-ÿ]"), text)


CHOICES = ["yes", "no", "perhaps not", 'a "b" / \\', "日本\n"]


def test_the_answer_is_one_of_the_choices(compiler: GrammarCompiler) -> None:
    texts = {write(constraint_of(compiler, Format("choice", CHOICES)), smollm2(), seed) for seed in range(40)}
    assert texts <= set(CHOICES)
    assert len(texts) > 2
    assert all(follow(constraint_of(compiler, Format("choice", CHOICES)), smollm2(), choice) for choice in CHOICES)


def test_the_answer_matches_a_grammar(compiler: GrammarCompiler) -> None:
    form = Format("grammar", 'start: "(" start ")" | NUMBER\nNUMBER: /[0-9]+/')
    assert follow(constraint_of(compiler, form), smollm2(), "((42))")
    assert not follow(constraint_of(compiler, form), smollm2(), "((4))2")


@pytest.mark.parametrize("form", [("regex", "a" * 2**20), ("grammar", "a" * 2**20), ("choice", ["a" * 2**19] * 2)])
def test_a_long_format_is_refused_before_it_is_converted(form: tuple[Kind, Any]) -> None:
    kind, value = form
    assert Format(kind, value).value is value
    with pytest.raises(UserError, match="longer than 1048576 characters"):
        Format(kind, value + type(value)("a"))


def test_a_constraint_is_complete_when_nothing_may_follow(compiler: GrammarCompiler) -> None:
    constraint = constraint_of(compiler, Format("json_schema", PERSON))
    assert follow(constraint, smollm2(), JSON[:-1])
    assert not constraint.complete
    assert follow(constraint, smollm2(), "}")
    assert constraint.complete
    number = constraint_of(compiler, Format("json_schema", {"type": "integer"}))
    assert follow(number, smollm2(), "12")
    assert not number.complete  # another digit may follow


def test_white_space_is_bounded(compiler: GrammarCompiler) -> None:
    assert follow(
        constraint_of(compiler, Format("json_schema", PERSON)), smollm2(), '{\n    "name" : "Ada",\n    "age": 36\n}'
    )
    assert not follow(constraint_of(compiler, Format("json_schema", PERSON)), smollm2(), "{" + "\n" * 10)


# --- around the answer --------------------------------------------------------------------------------------------

AROUND: list[tuple[Dialect, State, str, str]] = [
    (Dialect({}), State(), "", ""),
    (THINKS, State(), "<think>\nHm, {\n</think>\n\n", "Hm, {"),
    (THINKS, State(), "<think></think>", ""),
    (THINKS, State(), "", ""),
    (THINKS, State(Mode.THOUGHT, after_marker=True), "\nA {\"b\"} or </thi.\n</think>\n\n", 'A {"b"} or </thi.'),
    (THINKS, State(Mode.THOUGHT), "Hm.</think>", "Hm."),
    (THINKS, State(after_marker=True), "\n\n", ""),
    (WRAPS, State(), "<think>\nHm.\n</think>\n<answer>\n", "Hm."),
    (WRAPS, State(), "<think>\nHm.\n</think>\n", "Hm."),
    (GRANITE, State(), "Here is my thought process: A.\n\nHere is my response:\n", "A."),
    (HARMONY, State(Mode.HEADER), "<|channel|>final<|message|>", ""),
    (HARMONY, State(Mode.HEADER), "<|channel|>final <|constrain|>json<|message|>", ""),
    (
        HARMONY,
        State(Mode.HEADER),
        "<|channel|>analysis<|message|>Hm {.<|end|><|start|>assistant<|channel|>final<|message|>",
        "Hm {.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "state", "before", "thought"), AROUND)
def test_thoughts_come_first_and_stay_free(
    compiler: GrammarCompiler, dialect: Dialect, state: State, before: str, thought: str
) -> None:
    reads, make_constraint = constrain(OutputSpec(Format("json_schema", PERSON)), compiler, dialect, state)
    assert make_constraint
    constraint = make_constraint()
    assert follow(constraint, smollm2(), before + JSON)
    assert constraint.complete
    said = parse(reads, before + JSON, state)
    assert (said.content, said.reasoning) == (JSON, thought)
    for wrong in ("Sure: ", "[", "<tool_call>"):
        assert not follow(make_constraint(), smollm2(), before + wrong)


def test_a_thought_does_not_end_the_answer(compiler: GrammarCompiler) -> None:
    make_constraint = constrain(OutputSpec(Format("json_schema", PERSON)), compiler, THINKS, State(Mode.THOUGHT))[1]
    assert make_constraint
    constraint = make_constraint()
    assert follow(constraint, smollm2(), "Hm.")
    assert not follow(constraint, smollm2(), "<|im_end|>")


@pytest.mark.parametrize("text", ["<tool_call>", "</think>", "<think>", '{"name": "f", "arguments": {}}'])
def test_markers_inside_an_answer_are_text(compiler: GrammarCompiler, text: str) -> None:
    answer = json.dumps({"name": text, "age": 1})
    for dialect in (HERMES, HERMES.without_calls(), THINKS):
        reads, make_constraint = constrain(OutputSpec(Format("json_schema", PERSON)), compiler, dialect, State())
        assert make_constraint
        assert follow(make_constraint(), smollm2(), "<think>Hm.</think>" + answer)
        assert parse(reads, "<think>Hm.</think>" + answer).content == answer


def test_a_marker_that_is_a_token_ends_a_thought_and_is_no_text() -> None:
    tokenizer = smollm2()
    dialect = Dialect({"<repo_name>": Mark.THINK, "<file_sep>": Mark.END_THINK})
    compiler = GrammarCompiler(tokenizer, dialect.marks.__contains__)
    make_constraint = constrain(OutputSpec(Format("json_object")), compiler, dialect, State())[1]
    assert make_constraint
    assert follow(make_constraint(), tokenizer, '<repo_name>Hm, {"a": <file_sep>\n\n{"a": "b"}')
    assert not follow(make_constraint(), tokenizer, '<repo_name>Hm.<file_sep>{"a": "<file_sep>')
    assert not follow(make_constraint(), tokenizer, '{"a": <repo_name>')


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "properties": {"a": {"not": {"pattern": "a"}}}}, "pattern.*not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {"pattern": "a"}, "then": False}, "pattern.*if"),
        ({"type": "string", "format": 7}, "format"),
        ({"type": "strin"}, "strin"),
        ({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}, "/nowhere"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "Unsatisfiable"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "oneOf"),
        ({"$ref": "#"}, "enforced"),
        ({"x-guidance": {"lenient": True}, "properties": {"a": {"not": {"pattern": "a"}}}}, "not"),
        ({"const": float("nan")}, "/const holds nan"),
    ],
)
def test_unsupported_keywords_are_refused_by_name(
    compiler: GrammarCompiler, schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        constraint_of(compiler, Format("json_schema", schema))
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("json", None), ("json_object", {}), ("json_schema", "{}"), ("json_schema", None), ("regex", None)),
        *(("choice", []), ("choice", "ab"), ("choice", [1]), ("choice", [""]), ("grammar", {})),
    ],
)
def test_a_value_of_another_kind_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        Format(kind, value)
    assert caught.value.param == "response_format"


def test_a_regular_expression_with_half_an_escape_is_refused() -> None:
    for pattern in ("\\", "a\\", "a\\\\\\"):
        with pytest.raises(UserError, match="escape"):
            _ = Format("regex", pattern).grammar
    assert Format("regex", r"a\\").grammar


def test_an_answer_does_not_depend_on_those_before_it(compiler: GrammarCompiler) -> None:
    """Parser states accumulate and count towards the limits of a grammar; then it is compiled again."""
    lark = Lark(compiler.tokens)
    rules = lark.rules(lark.part(Format("regex", r"([a-z]{1,40}[0-9]?){1,40}").grammar))
    make_constraint = compiler.compile(rules, lark.parts)
    constraint = make_constraint()
    assert follow(constraint, smollm2(), "abc")
    constraint._matcher.consume_token(smollm2().encode("?")[0])  # as if a limit had been reached
    assert constraint._matcher.is_error()
    assert follow(constraint, smollm2(), "d3e")
    assert not follow(constraint, smollm2(), "?")


def test_an_answer_that_reaches_a_limit_has_an_error_about_its_format(compiler: GrammarCompiler) -> None:
    constraint = constraint_of(compiler, Format("regex", "[a-c]+"))
    constraint.take(smollm2().encode("a")[0])
    with pytest.raises(UserError, match="format of the answer cannot be enforced"):
        constraint.take(smollm2().encode("?")[0])


def test_a_slow_grammar_is_compiled_again_for_a_new_request_and_never_during_an_answer(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guide_module, "MAX_RENEWAL_S", 0.0)
    lark = Lark(compiler.tokens)
    rules = lark.rules(lark.part(Format("regex", "[d-f]+").grammar))
    make_constraint = compiler.compile(rules, lark.parts)
    compiled: list[str] = []
    monkeypatch.setattr(
        guide_module, "compile_grammar", lambda *args: compiled.append("again") or compile_grammar(*args)
    )
    constraint = make_constraint()
    with pytest.raises(UserError):
        constraint.take(smollm2().encode("?")[0])  # as if a limit had been reached
    assert follow(make_constraint(), smollm2(), "def")
    assert compiled == []
    assert follow(compiler.compile(rules, lark.parts)(), smollm2(), "def")
    assert compiled == ["again"]


@pytest.mark.parametrize("form", [Format("regex", "["), Format("regex", "(?=a)"), Format("grammar", "start: x")])
def test_invalid_formats_are_refused(compiler: GrammarCompiler, form: Format) -> None:
    with pytest.raises(UserError, match="enforced"):
        constraint_of(compiler, form)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "patterns": {"allOf": [{"type": "string", "pattern": f"^.*a.{{{n}}}b.*$"} for n in range(60)]},
    "a large remainder": {"type": "integer", "multipleOf": 1_000_003},
    "remainders": {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]},
    "depth": nested(300),
    "greater depth": nested(5000),
    "width": {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(20_000)}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_in_time(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("freedive.text.grammar_pool.PATIENCE_S", 0.5)
    start = time.monotonic()
    with pytest.raises(UserError):
        constraint_of(compiler, Format("json_schema", HOSTILE[name]))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "pattern",
    ["(a{1000}){1000}", "(x+x+)+y", "(a|b)*a(a|b){20}", "(?:.{0,50}foo){30}", r"((\p{L}|.){1,300}[a-f]){1,300}"],
)
def test_hostile_regular_expressions_are_refused_or_quick(compiler: GrammarCompiler, pattern: str) -> None:
    start = time.monotonic()
    with contextlib.suppress(UserError, RuntimeError):
        write(constraint_of(compiler, Format("regex", pattern)), smollm2(), 0, longest=50)
    assert time.monotonic() - start < 30


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler) -> None:
    lark = Lark(compiler.tokens)
    rules = lark.rules(lark.part(Format("json_schema", generated(7)).grammar))
    make_constraint = compiler.compile(rules, lark.parts)
    compiled = compiler._compiled.cache_info().misses
    compiler.compile(rules, lark.parts)
    assert compiler._compiled.cache_info().misses == compiled
    one, other = make_constraint(), make_constraint()
    assert follow(one, smollm2(), "{")
    assert follow(other, smollm2(), "{")
