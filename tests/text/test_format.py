"""What a guide lets through has the form that was asked for, and what it could not keep to is refused."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import jsonschema
import pytest
from guided import follow, smollm2, valid_json, write
from schemas import WRITTEN, generated

from freedive.errors import UserError
from freedive.text import guide as guide_module
from freedive.text.asking import Wish, granted
from freedive.text.dialects.dialect import Dialect, Mark, Mode, State
from freedive.text.dialects.known import dialect_for
from freedive.text.dialects.parser import parse
from freedive.text.format import Format
from freedive.text.grammar_compiler import compile_grammar
from freedive.text.guide import Guide, Guides
from freedive.text.lark import Lark

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
"""Not those of RFC 3339, which allows a small z: jsonschema does not."""
JSON = '{"name": "Ada", "age": 36}'


@pytest.fixture(scope="module")
def guides() -> Guides:
    return Guides(smollm2(), lambda text: False)


def guide_of(guides: Guides, form: Format) -> Guide:
    lark = Lark(guides.tokens)
    return guides.guide(lark.rules(lark.part(form.grammar)), lark.parts)()


def test_there_are_many_schemas() -> None:
    assert len(SCHEMAS) >= 200


@pytest.mark.parametrize("start", range(0, len(SCHEMAS), 20))
def test_what_comes_is_valid_under_the_schema(guides: Guides, start: int) -> None:
    finished = 0
    for number, schema in enumerate(SCHEMAS[start : start + 20], start):
        checker = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
        for seed in range(2):
            text = write(guide_of(guides, Format("json_schema", schema)), smollm2(), seed * 1000 + number)
            if text is not None:
                checker.validate(valid_json(text))
                finished += 1
    assert finished > 20  # of 40


@pytest.mark.parametrize("seed", range(5))
def test_a_json_object_is_one(guides: Guides, seed: int) -> None:
    text = write(guide_of(guides, Format("json_object")), smollm2(), seed, longest=2000)
    assert text is None or isinstance(valid_json(text), dict)


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-f]+", r"(yes|no)\.", r"a/b|é\d", r"\p{Lu}x?", "héllo"])
def test_the_whole_answer_matches_a_regular_expression(guides: Guides, pattern: str) -> None:
    for seed in range(5):
        text = write(guide_of(guides, Format("regex", pattern)), smollm2(), seed)
        assert text is None or re.fullmatch(pattern.replace(r"\p{Lu}", r"[^\W\d_a-zß-öø-ÿ]"), text)


CHOICES = ["yes", "no", "perhaps not", 'a "b" / \\', "日本\n"]


def test_the_answer_is_one_of_the_choices(guides: Guides) -> None:
    texts = {write(guide_of(guides, Format("choice", CHOICES)), smollm2(), seed) for seed in range(40)}
    assert texts <= set(CHOICES)
    assert len(texts) > 2
    assert all(follow(guide_of(guides, Format("choice", CHOICES)), smollm2(), choice) for choice in CHOICES)


def test_the_answer_matches_a_grammar(guides: Guides) -> None:
    form = Format("grammar", 'start: "(" start ")" | NUMBER\nNUMBER: /[0-9]+/')
    assert follow(guide_of(guides, form), smollm2(), "((42))")
    assert not follow(guide_of(guides, form), smollm2(), "((4))2")


def test_a_guide_is_complete_when_nothing_may_follow(guides: Guides) -> None:
    guide = guide_of(guides, Format("json_schema", PERSON))
    assert follow(guide, smollm2(), JSON[:-1])
    assert not guide.complete
    assert follow(guide, smollm2(), "}")
    assert guide.complete
    number = guide_of(guides, Format("json_schema", {"type": "integer"}))
    assert follow(number, smollm2(), "12")
    assert not number.complete  # another digit may


def test_white_space_comes_to_an_end(guides: Guides) -> None:
    assert follow(
        guide_of(guides, Format("json_schema", PERSON)), smollm2(), '{\n    "name" : "Ada",\n    "age": 36\n}'
    )
    assert not follow(guide_of(guides, Format("json_schema", PERSON)), smollm2(), "{" + "\n" * 10)


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
    guides: Guides, dialect: Dialect, state: State, before: str, thought: str
) -> None:
    reads, make_guide = granted(Wish(Format("json_schema", PERSON)), guides, dialect, state)
    assert make_guide
    guide = make_guide()
    assert follow(guide, smollm2(), before + JSON)
    assert guide.complete
    said = parse(reads, before + JSON, state)
    assert (said.content, said.reasoning) == (JSON, thought)
    for wrong in ("Sure: ", "[", "<tool_call>"):
        assert not follow(make_guide(), smollm2(), before + wrong)


def test_a_thought_does_not_end_the_answer(guides: Guides) -> None:
    make_guide = granted(Wish(Format("json_schema", PERSON)), guides, THINKS, State(Mode.THOUGHT))[1]
    assert make_guide
    guide = make_guide()
    assert follow(guide, smollm2(), "Hm.")
    assert not follow(guide, smollm2(), "<|im_end|>")


@pytest.mark.parametrize("text", ["<tool_call>", "</think>", "<think>", '{"name": "f", "arguments": {}}'])
def test_markers_inside_an_answer_are_text(guides: Guides, text: str) -> None:
    answer = json.dumps({"name": text, "age": 1})
    for dialect in (HERMES, HERMES.without_calls(), THINKS):
        reads, make_guide = granted(Wish(Format("json_schema", PERSON)), guides, dialect, State())
        assert make_guide
        assert follow(make_guide(), smollm2(), "<think>Hm.</think>" + answer)
        assert parse(reads, "<think>Hm.</think>" + answer).content == answer


def test_a_marker_that_is_a_token_ends_a_thought_and_is_no_text() -> None:
    tokenizer = smollm2()
    dialect = Dialect({"<repo_name>": Mark.THINK, "<file_sep>": Mark.END_THINK})
    guides = Guides(tokenizer, dialect.marks.__contains__)
    make_guide = granted(Wish(Format("json_object")), guides, dialect, State())[1]
    assert make_guide
    assert follow(make_guide(), tokenizer, '<repo_name>Hm, {"a": <file_sep>\n\n{"a": "b"}')
    assert not follow(make_guide(), tokenizer, '<repo_name>Hm.<file_sep>{"a": "<file_sep>')
    assert not follow(make_guide(), tokenizer, '{"a": <repo_name>')


# --- what is refused ----------------------------------------------------------------------------------------------


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
        ({"$ref": "#"}, "kept to"),
        ({"x-guidance": {"lenient": True}, "properties": {"a": {"not": {"pattern": "a"}}}}, "not"),
        ({"const": float("nan")}, "/const holds nan"),
    ],
)
def test_what_a_schema_cannot_have_is_refused_by_name(guides: Guides, schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        guide_of(guides, Format("json_schema", schema))
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


def test_an_answer_does_not_depend_on_those_before_it(guides: Guides) -> None:
    """States that others have come to count towards the limits of a grammar: then it is compiled anew."""
    lark = Lark(guides.tokens)
    rules = lark.rules(lark.part(Format("regex", r"([a-z]{1,40}[0-9]?){1,40}").grammar))
    make_guide = guides.guide(rules, lark.parts)
    guide = make_guide()
    assert follow(guide, smollm2(), "abc")
    guide._matcher.consume_token(smollm2().encode("?")[0])  # as if a limit had been reached
    assert guide._matcher.is_error()
    assert follow(guide, smollm2(), "d3e")
    assert not follow(guide, smollm2(), "?")


def test_an_answer_that_comes_to_a_limit_says_that_its_form_cannot_be_kept_to(guides: Guides) -> None:
    guide = guide_of(guides, Format("regex", "[a-c]+"))
    guide.take(smollm2().encode("a")[0])
    with pytest.raises(UserError, match="form of the answer cannot be kept to"):
        guide.take(smollm2().encode("?")[0])


def test_a_slow_grammar_is_compiled_anew_by_who_asks_and_never_for_a_running_answer(
    guides: Guides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guide_module, "MAX_RENEWAL_S", 0.0)
    lark = Lark(guides.tokens)
    rules = lark.rules(lark.part(Format("regex", "[d-f]+").grammar))
    make_guide = guides.guide(rules, lark.parts)
    compiled: list[str] = []
    monkeypatch.setattr(
        guide_module, "compile_grammar", lambda *args: compiled.append("again") or compile_grammar(*args)
    )
    guide = make_guide()
    with pytest.raises(UserError):
        guide.take(smollm2().encode("?")[0])  # as if a limit had been reached
    assert follow(make_guide(), smollm2(), "def")
    assert compiled == []
    assert follow(guides.guide(rules, lark.parts)(), smollm2(), "def")
    assert compiled == ["again"]


@pytest.mark.parametrize("form", [Format("regex", "["), Format("regex", "(?=a)"), Format("grammar", "start: x")])
def test_what_cannot_be_read_is_refused(guides: Guides, form: Format) -> None:
    with pytest.raises(UserError, match="kept to"):
        guide_of(guides, form)


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
def test_hostile_schemas_are_refused_in_time(guides: Guides, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("freedive.text.grammar_pool.PATIENCE_S", 0.5)
    start = time.monotonic()
    with pytest.raises(UserError):
        guide_of(guides, Format("json_schema", HOSTILE[name]))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "pattern",
    ["(a{1000}){1000}", "(x+x+)+y", "(a|b)*a(a|b){20}", "(?:.{0,50}foo){30}", r"((\p{L}|.){1,300}[a-f]){1,300}"],
)
def test_hostile_regular_expressions_are_refused_or_quick(guides: Guides, pattern: str) -> None:
    start = time.monotonic()
    with contextlib.suppress(UserError, RuntimeError):
        write(guide_of(guides, Format("regex", pattern)), smollm2(), 0, longest=50)
    assert time.monotonic() - start < 5


def test_a_grammar_is_compiled_once(guides: Guides) -> None:
    lark = Lark(guides.tokens)
    rules = lark.rules(lark.part(Format("json_schema", generated(7)).grammar))
    make_guide = guides.guide(rules, lark.parts)
    compiled = guides._compiled.cache_info().misses
    guides.guide(rules, lark.parts)
    assert guides._compiled.cache_info().misses == compiled
    one, other = make_guide(), make_guide()
    assert follow(one, smollm2(), "{")
    assert follow(other, smollm2(), "{")
