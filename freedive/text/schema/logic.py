"""Rewrites conditional keywords of JSON schemas with anyOf, allOf, const, type, pattern and required.

The result allows no value that the condition does not allow, and the same values where that can be expressed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = dict[str, Any]
Target = Callable[[Any], Any]
"""A function that returns a schema, or the schema that its $ref refers to."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
MAX_LEVELS = 8
MAX_PAIRS = 2000
MAX_DISTINCT = 8
MAX_CHOICES = 8
_NOT_CONDITIONS = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "$schema"})


class NotExpressible(Exception):
    """A condition that cannot be rewritten; the message has its keyword."""


def conditions(schema: Schema, target: Target) -> Iterator[Any]:
    """Yields schemas that express the conditional keywords of ``schema``. Raises NotExpressible."""
    if "not" in schema:
        yield negated(schema["not"], target)
    if "if" in schema and (schema.keys() & {"then", "else"}):
        condition, then, other = schema["if"], schema.get("then", True), schema.get("else", True)
        try:
            yield {"anyOf": [{"allOf": [condition, then]}, {"allOf": [negated(condition, target), other]}]}
        except NotExpressible as error:
            raise NotExpressible(f"{error} under 'if'") from None
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, needed in _mapping(schema, keyword).items():
            wanted = {"required": needed} if isinstance(needed, list) else needed
            yield {"anyOf": [{"allOf": [{"required": [name]}, wanted]}, {"properties": {name: False}}]}
    if "contains" in schema:
        yield {"prefixItems": [schema["contains"]], "minItems": 1}


def negated(schema: Any, target: Target, levels: int = MAX_LEVELS) -> Any:
    """Returns a schema of values that ``schema`` does not allow. Raises NotExpressible."""
    schema = target(schema)
    if isinstance(schema, bool):
        return not schema
    if not isinstance(schema, Mapping) or not levels:
        raise NotExpressible("'not'")
    ways = []
    for keyword, value in schema.items():
        if keyword not in _NOT_CONDITIONS:
            ways += _negated_keyword(keyword, value, lambda part: negated(part, target, levels - 1))
    return {"anyOf": ways} if ways else False


def _negated_keyword(keyword: str, value: Any, negated: Callable[[Any], Any]) -> list[Any]:
    """Returns schemas, one of which each value matches that violates ``keyword`` with ``value``."""
    match keyword, value:
        case "type", str() | list() if _are_names(value):
            named = {value} if isinstance(value, str) else {*value}
            excluded = named | ({"integer"} if "number" in named else {"number"} if "integer" in named else set())
            return [{"type": [name for name in TYPES if name not in excluded]}] if len(excluded) < len(TYPES) else []
        case "const", _:
            return [_other_than(value)]
        case "enum", list():
            return [{"allOf": [_other_than(item) for item in value]}]
        case "required", list() if _are_names(value):
            return [{"type": "object", "properties": {name: False}} for name in value]
        case "properties", Mapping():
            return [
                {"type": "object", "required": [name], "properties": {name: negated(part)}}
                for name, part in value.items()
            ]
        case "anyOf", list():
            return [{"allOf": [negated(part) for part in value]}]
        case "allOf", list():
            return [negated(part) for part in value]
        case "not", _:
            return [value]
        case _, int() | float() if keyword in _BEYOND and not isinstance(value, bool):
            name, other, step = _BEYOND[keyword]
            return [{"type": name, other: value + step}] if value + step >= 0 or name == "number" else []
    raise NotExpressible(f"{keyword!r} under 'not'")


_BEYOND = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}
"""By keyword: the type of values that violate it, the opposite keyword, and the difference of its number."""


def one_of(schemas: list[Any], target: Target) -> Schema | None:
    """Rewrites oneOf with ``schemas`` as anyOf, None if that is not possible."""
    if disjoint(schemas, target):
        return {"anyOf": schemas}
    if len(schemas) > MAX_CHOICES:
        return None
    try:
        others = [negated(schema, target) for schema in schemas]
    except NotExpressible:
        return None
    return {
        "anyOf": [{"allOf": [schema, *others[:place], *others[place + 1 :]]} for place, schema in enumerate(schemas)]
    }


def _other_than(value: Any) -> Schema:
    """Returns a schema of values other than ``value``."""
    match value:
        case bool():
            return _or_other("boolean", {"const": not value})
        case None:
            return _or_other("null")
        case int() | float():
            return _or_other("number", {"type": "number", "exclusiveMaximum": value}, {"exclusiveMinimum": value})
        case str():
            return _or_other("string", {"type": "string", "pattern": _other_text(value)})
        case list():
            return _or_other("array")
    return _or_other("object")


def _or_other(name: str, *ways: Schema) -> Schema:
    """Returns a schema of values of other types than ``name``, or of values that match one of ``ways``."""
    others = [other for other in TYPES if other != name and (other, name) != ("integer", "number")]
    return {"anyOf": [{"type": others}, *({"type": name, **way} for way in ways)]}


def _other_text(text: str) -> str:
    """Returns a regular expression that matches all texts except ``text``."""
    ways = [rf"{re.escape(text)}[\s\S]+"]
    for place, letter in enumerate(text):
        same = re.escape(text[:place])
        ways += [same, rf"{same}[^{re.escape(letter)}][\s\S]*"]
    return f"^({'|'.join(ways)})$"


def disjoint(schemas: Any, target: Target) -> bool:
    """Whether types, values and required properties show that no value matches two of ``schemas``."""
    if not isinstance(schemas, list) or len(schemas) ** 2 > MAX_PAIRS:
        return False
    pairs = ((one, other) for place, one in enumerate(schemas) for other in schemas[:place])
    return all(_disjoint(one, other, target, MAX_LEVELS) for one, other in pairs)


def _disjoint(one: Any, other: Any, target: Target, levels: int) -> bool:
    one, other = target(one), target(other)
    if one is False or other is False:
        return True
    if not isinstance(one, Mapping) or not isinstance(other, Mapping) or not levels:
        return False
    if not _types(one) & _types(other):
        return True
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not values & others
    if _types(one) & _types(other) != {"object"}:
        return False
    mine, theirs = _mapping(one, "properties"), _mapping(other, "properties")
    required = _names(one, "required") & _names(other, "required")
    return any(_disjoint(mine.get(name), theirs.get(name), target, levels - 1) for name in required)


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Returns the types that ``schema`` may allow; "number" includes integers."""
    named = schema.get("type")
    found = {named} if isinstance(named, str) else _names(schema, "type")
    if not found:
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        found = {_type_of(value) for value in values} if isinstance(values, list) else {*TYPES}
    return {"number" if name == "integer" else name for name in found}


def _type_of(value: Any) -> str:
    kinds = {bool: "boolean", str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """Returns the values of an enum or a const as texts, None if there is neither; 1.0 and 1 are equal."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return None
    return {json.dumps(value if not isinstance(value, float) or value % 1 else int(value)) for value in values}


def with_names(schema: Schema, target: Target) -> Schema:
    """Rewrites propertyNames of ``schema`` as properties or patternProperties, if it is a list or a pattern."""
    names = target(schema.get("propertyNames"))
    if not isinstance(names, Mapping) or "patternProperties" in schema:
        return schema
    others = schema.get("additionalProperties", True)
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    own = _mapping(schema, "properties")
    texts = [names["const"]] if "const" in names else names.get("enum")
    if isinstance(texts, list) and names.keys() <= {"const", "enum", "type"} | _NOT_CONDITIONS:
        properties = {text: own.get(text, others) for text in texts if isinstance(text, str)}
        return rest | {"properties": properties, "additionalProperties": False}
    if not own and isinstance(names.get("pattern"), str) and names.keys() <= {"pattern", "type"} | _NOT_CONDITIONS:
        return rest | {"patternProperties": {names["pattern"]: others}, "additionalProperties": False}
    return schema


def with_distinct_items(schema: Schema, target: Target) -> Schema:
    """Rewrites uniqueItems of ``schema``, if its items are a few texts, as all subsets in the order of the enum."""
    items = target(schema.get("items"))
    texts = [*dict.fromkeys(text for text in _listed(items, "enum") if isinstance(text, str))] if items else []
    if schema.get("type") != "array" or "prefixItems" in schema or len(texts) > MAX_DISTINCT or not texts:
        return schema
    rest = {key: value for key, value in schema.items() if key != "uniqueItems"}
    subsets = [[text for place, text in enumerate(texts) if chosen >> place & 1] for chosen in range(1 << len(texts))]
    return rest | {"allOf": [*_listed(schema, "allOf"), {"enum": subsets}]}


def without_others(value: Any, parts: list[Mapping[str, Any]]) -> Schema:
    """Rewrites unevaluatedProperties with ``value`` as additionalProperties; ``parts`` are all parts of the schema."""
    properties: dict[str, Any] = {}
    patterns: dict[str, Any] = {}
    for part in parts:
        if "additionalProperties" in part:
            return {}
        properties |= dict.fromkeys(_mapping(part, "properties"), True)
        patterns |= dict.fromkeys(_mapping(part, "patternProperties"), True)
    named = {"properties": properties, **({"patternProperties": patterns} if patterns else {})}
    return {**named, "additionalProperties": value}


def _mapping(schema: Any, key: str) -> Mapping[str, Any]:
    value = schema.get(key) if isinstance(schema, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _listed(schema: Any, key: str) -> list[Any]:
    value = schema.get(key) if isinstance(schema, Mapping) else None
    return value if isinstance(value, list) else []


def _names(schema: Any, key: str) -> set[str]:
    """Returns the texts in the list ``key`` of ``schema``; what else a user wrote there is refused elsewhere."""
    return {name for name in _listed(schema, key) if isinstance(name, str)}


def _are_names(value: str | list[Any]) -> bool:
    return all(isinstance(name, str) for name in value)
