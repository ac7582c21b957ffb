"""A rewritten schema allows nothing that the original does not, and unsupported parts are refused by name."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from constrained import follow, smollm2, valid_json, write
from schemas import wild
from test_format import compiler, constraint_of  # noqa: F401  # a fixture

from freedive.errors import UserError
from freedive.text.format import Format
from freedive.text.grammar_constraint import GrammarCompiler
from freedive.text.schema.numbers import NumberError, checked_multiple, inner_bounds, is_exact
from freedive.text.schema.rewrite import rewritten


def writes(compiler: GrammarCompiler, schema: dict[str, Any], text: str) -> bool:  # noqa: F811
    constraint = constraint_of(compiler, Format("json_schema", schema))
    if not follow(constraint, smollm2(), text):
        return False
    stops = [int(token) for token in smollm2().stop_ids]
    return constraint.complete or any(constraint.allowed()[token // 8] >> token % 8 & 1 for token in stops)


INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}


@pytest.mark.parametrize(
    ("schema", "text", "may"),
    [
        (INT64, "-9007199254740993", True),
        (INT64, "9223372036854774000", True),
        (INT64, "9223372036854775808", False),
        ({"type": "integer", "minimum": -(2**63)}, "0", True),
        ({"type": "integer", "minimum": 2**53 + 1}, str(2**53), False),
        ({"type": "integer", "minimum": 2**53 + 1}, str(2**53 + 2), True),
        ({"type": "integer", "exclusiveMaximum": 10**18}, str(10**18), False),
        ({"type": "integer", "exclusiveMinimum": 2.5, "maximum": 4.5}, "3", True),
        ({"type": "integer", "exclusiveMinimum": 2.5, "maximum": 4.5}, "5", False),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "3", False),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.1}, "0", False),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.1}, "0.05", True),
        ({"type": "number", "exclusiveMinimum": 0}, "0.00", False),
        ({"type": "number", "minimum": -1e300, "maximum": 1e300}, "-12.5", True),
        ({"type": "number", "minimum": 9954551184.561153}, "9954551184.561152999", False),
        ({"const": 2**60}, str(2**60), True),
        ({"const": 1e-7}, "0.0000001", True),
        ({"enum": [1e18, 2.5]}, "1" + "0" * 18, True),
    ],
)
def test_numbers_are_kept_exactly_or_more_narrowly(
    compiler: GrammarCompiler,  # noqa: F811
    schema: Any,
    text: str,
    may: bool,
) -> None:
    assert writes(compiler, schema, text) == may


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": [1234567890123456789]}, "1234567890123456789, which has too many digits: write it as text"),
        ({"const": 9007199254740993}, "/const holds 9007199254740993"),
        ({"const": {"a": [2**64]}}, "too many digits"),
        ({"type": "integer", "enum": [1e19]}, "too many digits"),
        ({"const": -(2**63)}, "too many digits"),
        ({"const": 123456789.12345679}, "123456789.12345679, which has too many digits"),
        ({"enum": [10**5000]}, "of 5001 digits, which has too many"),
        (
            {"properties": {"a": {"type": "integer", "minimum": 18446744073709551610}}},
            "/properties/a has the bound 184467",
        ),
        ({"type": "integer", "minimum": -1e30, "maximum": -1e30}, "64 bits"),
        ({"type": "number", "minimum": 1e300}, "beyond 1e"),
        ({"minimum": "3"}, "minimum 3, which is no number"),
        ({"exclusiveMinimum": 1, "maximum": True}, "maximum True, which is no number"),
        ({"minimum": 10**400}, "too large"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"multipleOf": -3}, "multipleOf"),
        ({"multipleOf": 10**400_000}, "multipleOf"),
        ({"multipleOf": 1e-300}, "multipleOf"),
        ({"multipleOf": True}, "multipleOf"),
        ({"items": {"multipleOf": 1_000_003}}, "multipleOf"),
        ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "multiples of more than"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, str) else "",
)
def test_numbers_that_cannot_be_represented_are_refused_by_name(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        rewritten(schema, "response_format")
    assert caught.value.param == "response_format"
    assert len(str(caught.value)) < 300


def test_constants_are_written_as_the_same_double_or_refused(compiler: GrammarCompiler) -> None:  # noqa: F811
    rng = random.Random(1)
    numbers = [rng.uniform(0, 1) * 10 ** rng.randint(-6, 12) for _ in range(60)]
    kept = [number for number in numbers if is_exact(number)]
    assert 40 < len(kept) < 60
    assert all(writes(compiler, {"const": number}, repr(number)) for number in kept if number > 1e-4)


@pytest.mark.parametrize("integer", [True, False])
def test_bounds_only_move_inwards(integer: bool) -> None:
    rng = random.Random(1)
    for _ in range(3000):
        whole = rng.randint(-(2**62), 2**62) if integer else rng.randint(-99, 99)
        number = rng.choice([whole, rng.uniform(-1, 1) * 10 ** rng.randint(-20, 16)])
        least = inner_bounds({"minimum": number}, integer=integer)["minimum"]
        most = inner_bounds({"maximum": number}, integer=integer)["maximum"]
        assert Decimal(repr(least)) >= Decimal(repr(number)) or least == -(10**17)
        assert Decimal(repr(most)) <= Decimal(repr(number)) or most == 10**17
        above = inner_bounds({"exclusiveMinimum": number / 1e3}, integer=integer)["minimum"]
        assert above > number / 1e3


def test_multiples_are_counted_in_common() -> None:
    others: list[Decimal] = []
    assert checked_multiple(0.25, others) == 0.25
    assert checked_multiple(30, others) == 30
    with pytest.raises(NumberError):
        checked_multiple(997, others)


CONTROLS = 'a\x00b\x1f\x7f\n"\\é'


@pytest.mark.parametrize(
    ("schema", "text", "may"),
    [
        ({"const": "hello\0there"}, r'"hello\u0000there"', True),
        ({"const": "hello\0there"}, '"hellothere"', False),
        ({"enum": ["x", CONTROLS]}, json.dumps(CONTROLS, ensure_ascii=False).replace("\x7f", r"\u007f"), True),
        ({"enum": ["x", "a\x7fb"]}, '"ab"', False),
        ({"type": "string", "pattern": r"^a\x00b$"}, '"ab"', False),
        ({"type": "string", "pattern": r"^a\x00b$"}, r'"a\u0000b"', True),
        ({"type": "string", "pattern": "^a\x01b$"}, '"ab"', False),
        ({"type": "string", "pattern": r"^a\vb$"}, '"ab"', False),
        ({"type": "object", "patternProperties": {"^a\x00b$": {}}, "additionalProperties": False}, '{"ab":1}', False),
        ({"properties": {"a\0b": {"const": 1}}, "required": ["a\0b"], "type": "object"}, r'{"a\u0000b":1}', True),
        ({"properties": {"a\0b": {"const": 1}}, "required": ["a\0b"], "type": "object"}, '{"ab":1}', False),
        ({"properties": {"ab": {"const": 1}, "c": {"const": "\0"}}, "type": "object"}, r'{"\u0061b":2}', False),
        ({"properties": {"c": {"const": "\0"}}, "required": ["d"], "type": "object"}, '{"d":2}', True),
        ({"properties": {"ab": {"const": 1}}, "type": "object"}, r'{"\u0061b":2}', False),
    ],
)
def test_control_characters_are_written_exactly(compiler: GrammarCompiler, schema: Any, text: str, may: bool) -> None:  # noqa: F811
    assert writes(compiler, schema, text) == may


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"not": {"const": "ab"}, "type": "string"}, ['"a"', '"abc"', '""', '"xb"'], ['"ab"']),
        ({"not": {"enum": ["a", "b"]}, "type": "string"}, ['"ab"'], ['"a"', '"b"']),
        ({"not": {"type": ["string", "integer"]}}, ["null", "[]"], ['"a"', "1"]),
        ({"not": {"required": ["a"]}}, ['{"b":1}'], ['{"a":1}', "1"]),
        ({"type": "number", "not": {"const": 3}}, ["2.5", "4"], ["3", "3.0"]),
        ({"dependentRequired": {"a": ["b"]}, "type": "object"}, ['{"b":1}', '{"a":1,"b":2}'], ['{"a":1}']),
        ({"dependencies": {"a": {"required": ["b"]}}, "type": "object"}, ['{"a":1,"b":2}'], ['{"a":1}']),
        (
            {
                "type": "object",
                "properties": {"kind": {"enum": ["us", "ca"]}, "zip": {"type": "string", "maxLength": 9}},
                "required": ["kind", "zip"],
                "additionalProperties": False,
                "if": {"properties": {"kind": {"const": "us"}}},
                "then": {"properties": {"zip": {"pattern": "^[0-9]{5}$"}}},
                "else": {"properties": {"zip": {"pattern": "^[A-Z]{3}$"}}},
            },
            ['{"kind":"us","zip":"12345"}', '{"kind":"ca","zip":"ABC"}'],
            ['{"kind":"us","zip":"ABC"}', '{"kind":"ca","zip":"12345"}'],
        ),
        ({"contains": {"const": 1}, "type": "array"}, ["[1]", '[1,"a"]'], ["[]", "[2]"]),
        ({"propertyNames": {"enum": ["a", "b"]}, "type": "object"}, ['{"a":1}', "{}"], ['{"c":1}']),
        (
            {"propertyNames": {"$ref": "#/$defs/N"}, "$defs": {"N": {"pattern": "^x"}}, "type": "object"},
            ['{"x1":1}'],
            ['{"a":1}'],
        ),
        ({"unevaluatedProperties": False, "properties": {"a": {}}, "type": "object"}, ['{"a":1}'], ['{"b":1}']),
        ({"items": [{"const": 1}], "additionalItems": False, "type": "array"}, ["[1]"], ["[2]", "[1,1]"]),
        ({"uniqueItems": True, "maxItems": 1, "type": "array"}, ["[1]"], ["[1,1]"]),
        (
            {"uniqueItems": True, "type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1},
            ['["a","c"]', '["b"]'],
            ["[]", '["a","a"]', '["d"]'],
        ),
        (
            {
                "type": "object",
                "unevaluatedProperties": False,
                "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"const": 2}}}],
                "$defs": {"base": {"properties": {"a": {"const": 1}}, "required": ["a"]}},
            },
            ['{"a":1,"b":2}', '{"a":1}'],
            ['{"a":1,"c":3}', '{"b":2}'],
        ),
        (
            {
                "oneOf": [{"$ref": "#/$defs/Cat[str]"}, {"$ref": "#/$defs/Dog%20x"}],
                "discriminator": {"propertyName": "kind"},
                "$defs": {
                    "Cat[str]": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
                    "Dog x": {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]},
                },
            },
            ['{"kind":"cat"}', '{"kind":"dog"}'],
            ['{"kind":"cow"}'],
        ),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, ["1", "null"], ["3"]),
        ({"type": "string", "oneOf": [{"minLength": 2}, {"maxLength": 4}]}, ['"a"', '"abcde"'], ['"abc"']),
        ({"type": "array", "not": {"minItems": 2}}, ["[]", "[1]"], ["[1,2]"]),
        ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"const": 1}}}, ["1"], ["2"]),
        ({"$ref": "#x", "$defs": {"a": {"$anchor": "x", "const": 1}}}, ["1"], ["2"]),
        ({"$id": "https://a.b/c", "$ref": "https://a.b/c#/$defs/d", "$defs": {"d": {"const": 1}}}, ["1"], ["2"]),
    ],
)  # fmt: skip
def test_keywords_that_llguidance_lacks_are_rewritten(
    compiler: GrammarCompiler,  # noqa: F811
    schema: Any,
    yes: list[str],
    no: list[str],
) -> None:
    checker = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    if "additionalItems" in schema:
        checker = jsonschema.Draft7Validator
    for text in yes:
        assert writes(compiler, schema, text), text
    for text in no:
        assert not writes(compiler, schema, text), text
    for seed in range(6):
        written = write(constraint_of(compiler, Format("json_schema", schema)), smollm2(), seed)
        assert written is None or not [*checker(schema).iter_errors(valid_json(written))]


ANNOTATIONS = {
    **{"title": "T", "description": None, "default": 3, "examples": [1], "deprecated": True, "$comment": "c"},
    **{"readOnly": True, "writeOnly": False, "nullable": True, "x-order": 1, "externalDocs": {}, "xml": {}},
    **{"discriminator": {"propertyName": "k"}, "contentEncoding": "base64", "example": 1, "$schema": "x"},
    **{"minItems": None, "required": None},
}


@pytest.mark.parametrize(
    "name", ["password", "path", "binary", "byte", "url", "regex", "int64", "decimal", "uri-reference", "json-pointer"]
)
def test_annotations_have_no_effect(compiler: GrammarCompiler, name: str) -> None:  # noqa: F811
    assert writes(compiler, {"type": "string", "format": name, **ANNOTATIONS}, '"anything"')
    assert rewritten({"type": "string", "format": name, **ANNOTATIONS}, "tools") == ({"type": "string"}, False)


NO_SCHEMAS: tuple[Any, ...] = (None, [], "string", 7)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        *(({"properties": {"a": wrong}}, "/properties/a is no schema") for wrong in NO_SCHEMAS),
        ({"properties": True}, "/properties is no object of schemas"),
        ({"properties": []}, "/properties is no object of schemas"),
        ({"anyOf": {}}, "/anyOf is no list of schemas"),
        ({"items": 3}, "/items is no schema"),
        ({"required": True}, "/required is no list of names"),
        ({"oneOf": [{"required": [[]]}, {"required": ["a"]}]}, "/required is no list of names"),
        ({"not": {"type": "object", "required": [1]}}, "'required' under 'not'"),
        ({"not": {"required": [{}]}}, "'required' under 'not'"),
        ({"not": {"type": ["string", []]}}, "'type' under 'not'"),
        ({"enum": "a"}, "/enum is no list of values"),
        ({"type": 3}, "none of null"),
        ({"type": []}, "empty"),
        ({"type": {"a": 1}}, "none of null"),
        ({"minLength": -1}, "no count"),
        ({"minLength": 2.5}, "no count"),
        ({"minLength": 10**30}, "more than"),
        ({"pattern": 3}, "no text"),
        ({"$ref": 3}, "not a string"),
        ({"items": {"$ref": "#/x", "$id": "a"}, "x": {}}, "differs between drafts"),
        ({"$ref": "other.json"}, "'other.json', which is not a schema in it"),
        ({"dependentRequired": {"a": 3}}, "no schema"),
        ({"uniqueItems": True}, "'uniqueItems', which cannot"),
        ({"items": {"patternProperties": 3}}, "/items/patternProperties is no object"),
    ],
)
def test_an_invalid_schema_is_refused_by_name(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rewritten(schema, "tools")


@pytest.mark.parametrize(
    "schema",
    [
        {"const": -9223372036854775808},
        {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 99},
        {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1500)}},
        {"anyOf": [{"type": "object", "properties": {f"a{n}": {}}, "required": [f"a{n}"]} for n in range(3000)]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"$ref": "#"}]},
        {"not": {"not": {"$ref": "#"}}},
    ],
)
def test_a_schema_that_is_too_complex_is_a_user_error(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:  # noqa: F811
    with pytest.raises(UserError) as caught:
        constraint_of(compiler, Format("json_schema", schema))
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "lark",
    [
        "start: start",
        'start: A\nA: /[^\\s\\S]/',
        "start: A\nA: /a/ & /b/",
        "start: " + " ".join(f"r{n}" for n in range(3)) + "\n",
        "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(2000)),
    ],
)  # fmt: skip
def test_a_grammar_that_nothing_can_match_is_refused(compiler: GrammarCompiler, lark: str) -> None:  # noqa: F811
    with pytest.raises(UserError, match="enforced"):
        constraint_of(compiler, Format("grammar", lark))


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_any_schema_is_refused_or_followed(compiler: GrammarCompiler, start: int) -> None:  # noqa: F811
    finished = 0
    for seed in range(start, start + 50):
        schema = wild(seed)
        try:
            constraint = constraint_of(compiler, Format("json_schema", schema))
            text = write(constraint, smollm2(), seed, longest=60)
        except UserError:
            continue
        if text is not None:
            finished += 1
            if jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA).is_valid(schema):
                jsonschema.Draft202012Validator(schema).validate(valid_json(text))
    assert finished > 3


def itself(name: str, keyword: str) -> dict[str, Any]:
    """Returns a schema that refers to itself in 60 ways."""
    way = {"$ref": f"#/$defs/{name}"}
    if keyword == "allOf":
        return {"allOf": [way] * 60}
    return {"type": "object", "properties": {f"p{n}": way for n in range(60)}, "required": [f"p{n}" for n in range(60)]}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]},
        {"not": {"$ref": "#/$defs/a"}},
        {"unevaluatedProperties": False, "$ref": "#/$defs/c"},
        {"not": {"$ref": "#/$defs/c"}},
    ],
)
def test_references_that_multiply_are_refused_at_once(schema: dict[str, Any]) -> None:
    definitions = {"a": itself("a", "properties"), "b": itself("b", "properties"), "c": itself("c", "allOf")}
    with pytest.raises(UserError, match=r"too many ways|cannot be enforced"):
        rewritten({**schema, "$defs": definitions}, "tools")


@pytest.mark.parametrize("key", ["allOf", "anyOf", "oneOf", "prefixItems"])
@pytest.mark.parametrize("beside", [{}, {"unevaluatedProperties": False}, {"oneOf": [{"const": 1}], "anyOf": [{}]}])
def test_schemas_that_are_no_list_are_refused_by_name(key: str, beside: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"/{key} is no list of schemas"):
        rewritten({**beside, key: 0.5}, "response_format")
