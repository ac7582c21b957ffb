"""JSON schemas: written ones for each keyword, and generated ones that nest them."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "maxLength": 12}
WRITTEN: list[Schema] = [
    {"type": "object", "properties": {"name": NAME, "age": {"type": "integer"}}, "required": ["name", "age"]},
    {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2, "minProperties": 1},
    {"type": "object", "patternProperties": {"^x[0-9]+$": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "properties": {"naïve": {"type": "null"}, "日本": {"const": "語"}}, "required": ["日本"]},
    {"type": "object", "properties": {'quo"te\\': {"type": "boolean"}, "new\nline": {"const": "\t"}}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False},
    {"type": "array", "prefixItems": [{"const": 1}], "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2}, "maxItems": 2},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": "[0-9]", "maxLength": 8},
    {"type": "string", "pattern": "^é+[^a-z]?$"},
    *({"type": "string", "format": name} for name in ("date", "time", "date-time", "ipv4", "uuid", "email")),
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1000, "multipleOf": 7},
    {"type": "integer", "maximum": -100},
    {"type": "number", "minimum": 0.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 1},
    {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 10},
    {"enum": ["red", 3, None, True, {"a": [1, "ü"]}]},
    {"const": {"deep": [{"x": None}, "é", -1]}},
    {"type": ["string", "null"], "maxLength": 4},
    {"type": ["integer", "boolean", "array"], "items": {"type": "boolean"}, "maxItems": 2},
    {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "maxLength": 3}]},
    {"oneOf": [{"type": "boolean"}, {"type": "string", "enum": ["x", "y"]}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    {"$ref": "#/$defs/colour", "$defs": {"colour": {"enum": ["red", "green"]}}},
    {
        "$defs": {"tree": {"type": "object", "properties": {"v": {"type": "integer"}, "l": {"$ref": "#/$defs/tree"}}}},
        "$ref": "#/$defs/tree",
    },
    {
        "definitions": {"item": {"type": "object", "properties": {"n": NAME}, "required": ["n"]}},
        "type": "array",
        "items": {"anyOf": [{"$ref": "#/definitions/item"}, {"type": "null"}]},
        "maxItems": 3,
    },
    {
        "type": "object",
        "title": "Step",
        "description": "As pydantic writes them",
        "properties": {
            "kind": {"const": "step", "default": "step", "title": "Kind", "type": "string"},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}], "default": None},
        },
        "required": ["next"],
        "additionalProperties": False,
    },
]

SCALARS: list[Schema] = [
    {"type": "integer"},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string", "maxLength": 20},
    {"type": "integer", "minimum": 0, "maximum": 130},
    {"type": "number", "minimum": -1, "maximum": 1},
    {"type": "integer", "multipleOf": 5},
    {"type": "string", "pattern": "^[a-z]{1,8}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "minLength": 1, "maxLength": 4},
    {"enum": ["red", "green", "bleu é"]},
    {"enum": [1, 2.5, None, "x"]},
    {"const": "fixed"},
    {"type": ["string", "null"], "maxLength": 6},
]
KEYS = ["name", "id", "größe", "x y", "値", "a-b", 'q"', "type", "items", "$x", "required"]


def generated(seed: int, depth: int = 3) -> Schema:
    """Returns a schema of objects, arrays, unions and scalars, with names, limits and references, from ``seed``."""
    rng = random.Random(seed)
    schema = _object(rng, depth)
    schema["$defs"] = {"shared": _any(rng, 1)}
    return schema


def _any(rng: random.Random, depth: int) -> Schema:
    kind = rng.choice(["scalar", "scalar", "object", "array", "union", "ref"]) if depth else "scalar"
    if kind == "object":
        return _object(rng, depth - 1)
    if kind == "array":
        least = rng.randint(0, 2)
        limits = {"minItems": least, "maxItems": least + rng.randint(0, 2)}
        return {"type": "array", "items": _any(rng, depth - 1), **limits}
    if kind == "union":
        return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    if kind == "ref" and depth > 1:
        return {"$ref": "#/$defs/shared"}
    return dict(rng.choice(SCALARS))


def _object(rng: random.Random, depth: int) -> Schema:
    keys = rng.sample(KEYS, rng.randint(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {key: _any(rng, max(depth, 0)) for key in keys},
        "required": [key for key in keys if rng.random() < 0.6],
    }
    if rng.random() < 0.7:
        schema["additionalProperties"] = rng.choice([False, False, {"type": "boolean"}])
    return schema


NUMBERS = [0, 1, -1, 3, 2.5, 0.1, 1e-9, -0.25, 100, 2**53 + 1, -(2**63), 2**63 - 1, 2**64, 1e19, 1e300, 1e-300]
TEXTS = ["", "a", "ab", "x y", "é", "日本", "a\0b", "\x7f", '"', "\\", "\n", "1", "true", "$ref", "</parameter>"]
PATTERNS = [
    "^a+$",
    "b",
    "^[a-z]{2,4}$",
    r"\d",
    r"^a\x00?b",
    "^(a|bc)*$",
    "",
    ".",
    "é",
    "(?i)x",
    r"\p{L}{2}",
    "[^a]",
    "(",
]
VALUES = [*NUMBERS, *TEXTS, None, True, False, [], {}, [1, "a"], {"a": 1, "b": [None]}]
REFERENCES = ["#", "#/$defs/a", "#/$defs/b%20%5Bc%5D", "#/properties/a", "#anchor", "#/nowhere", "other.json", 3]


def wild(seed: int, depth: int = 3) -> Schema:
    """Returns a schema of any keywords, a few of them with invalid values, from ``seed``."""
    rng = random.Random(seed)
    schema = _wild(rng, depth)
    if not isinstance(schema, dict):
        schema = {"properties": {"a": schema}}
    schema.setdefault("$defs", {"a": _wild(rng, 1), "b [c]": _wild(rng, 1), "c": {"$anchor": "anchor", "type": "null"}})
    return schema


def _wild(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.06:
        return rng.choice([True, False, True, {}, None, 7])
    schema: Schema = {}
    if rng.random() < 0.7:
        schema["type"] = rng.choice(["object", "array", "string", "integer", "number", "boolean", "null", "object"])
    for _ in range(rng.randint(0, 3)):
        keyword = rng.choice([*_WILD, *(() if depth else _WILD)])
        value = _WILD[keyword](rng, depth - 1)
        if value is not _WILD:
            schema[keyword] = value if rng.random() < 0.985 else rng.choice(VALUES)
    return schema


def _below(make: Any) -> Any:
    return lambda rng, depth: make(rng, depth) if depth >= 0 else _WILD


def _some(choices: list[Any], most: int = 1) -> Any:
    return lambda rng, depth: rng.choice(choices) if most == 1 else rng.choices(choices, k=rng.randint(1, most))


_ONE = _below(_wild)
_LIST = _below(lambda rng, depth: [_wild(rng, depth) for _ in range(rng.randint(1, 3))])
_NAMED = _below(lambda rng, depth: {name: _wild(rng, depth) for name in rng.sample(TEXTS, rng.randint(1, 3))})
_COUNT = _some([0, 1, 2, 3, 5, 2.0, 40])
_WILD: dict[str, Any] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _some(NUMBERS)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"), _ONE),
    **dict.fromkeys(("anyOf", "allOf", "oneOf", "prefixItems"), _LIST),
    **dict.fromkeys(("properties", "dependentSchemas"), _NAMED),
    **{"multipleOf": _some([1, 2, 7, 0.5, 0.25, 4]), "const": _some(VALUES), "enum": _some(VALUES, 4)},
    **{"required": _some(TEXTS, 2), "pattern": _some(PATTERNS), "$ref": _some(REFERENCES)},
    **{"patternProperties": _below(lambda rng, depth: {rng.choice(PATTERNS): _wild(rng, depth)})},
    **{"dependentRequired": lambda rng, depth: {rng.choice(TEXTS): rng.choices(TEXTS, k=2)}},
    **{"format": _some(["date", "uuid", "password", "regex", "ipv4"]), "uniqueItems": _some([True, False])},
    **{"unevaluatedProperties": _some([True, False]), "unevaluatedItems": _some([True, False])},
    **{"x-note": _some(VALUES), "title": _some(TEXTS), "nullable": _some([True]), "default": _some(VALUES)},
}
