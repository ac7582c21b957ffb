"""Codecs for the name and the arguments of a tool call, in the syntaxes that models use."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from freedive.text.arguments import MAX_DIGITS
from freedive.text.dialects.dialect import Call, Codec, Schemas
from freedive.text.schema.references import References

MAX_PYTHONIC = 1 << 16
"""The most characters of a call in Python syntax, whose parser takes far more time and memory than JSON's."""

_UNREADABLE = (ValueError, TypeError, LookupError, SyntaxError, RecursionError, MemoryError)
"""Errors that json and ast raise for text of a model."""

_CALL_KEYS = frozenset({"id", "type", "name", "arguments", "parameters"})


def read_calls(codecs: Iterable[Codec], body: str, schemas: Schemas) -> list[Call]:
    """Returns the calls in ``body`` from the first codec that can read it, none if no codec can."""
    for codec in codecs:
        try:
            return codec(body, schemas)
        except _UNREADABLE:
            continue
    return []


def parameter_schemas(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """Returns the schemas of all parameters by function of ``tools``: {"type": "function", "function": {...}}."""
    found: dict[str, Mapping[str, Any]] = {}
    for function in (tool["function"] for tool in tools):
        root = _mapping(function.get("parameters"))
        references = References(root)
        properties = named_properties(root, references).items()
        found[function["name"]] = {key: resolved(schema, references) for key, schema in properties}
    return found


def named_properties(root: Any, references: References) -> dict[str, Any]:
    """Returns all properties of ``root``, also in $ref and choices; a property with two schemas may match either."""
    found: dict[str, list[Any]] = {}
    waiting, seen = [root], {id(root)}
    while waiting:
        schema = _mapping(waiting.pop())
        for key, named in _mapping(schema.get("properties")).items():
            found.setdefault(key, []).append(named)
        parts = [part for name in ("oneOf", "anyOf", "allOf") for part in reversed(_listed(schema.get(name)))]
        for part in [*parts, references.referred(schema)]:
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    return {key: named[0] if len(named) == 1 else {"anyOf": named} for key, named in found.items()}


def resolved(schema: Any, references: References) -> Any:
    """Replaces the $ref of ``schema`` and of its choices by the schemas that they refer to."""
    if not isinstance(schema, Mapping):
        return schema
    schema = references.merged(schema)
    if not isinstance(schema, Mapping):
        return schema
    choices = {name: _listed(schema[name]) for name in ("anyOf", "oneOf", "allOf") if name in schema}
    return {**schema, **{name: [references.merged(choice) for choice in each] for name, each in choices.items()}}


def json_calls(body: str, schemas: Schemas) -> list[Call]:
    """Reads {"name": ..., "arguments": {...}} objects, or lists of them; "parameters" may replace "arguments"."""
    calls: list[Call] = []
    start = 0
    while begin := _NEXT_VALUE.search(body, start):
        value, start = _DECODER.raw_decode(body, begin.start())
        calls += [_json_call(item) for item in (value if isinstance(value, list) else [value])]
    return calls


def json_items(body: str, schemas: Schemas) -> list[Call]:
    """Reads a JSON list of calls without its opening bracket, which is part of the marker."""
    return json_calls(f"[{body}", schemas)


def pythonic_calls(body: str, schemas: Schemas) -> list[Call]:
    """Reads [f(a=1), g()] in Python syntax with literal arguments, or a single call."""
    tree = _python(body)
    return [_python_call(node) for node in (tree.elts if isinstance(tree, ast.List) else [tree])]


def keyword_calls(body: str, schemas: Schemas) -> list[Call]:
    """Reads calls f(a=1, b="x"), one after another, with JSON values (OLMo 3)."""
    calls: list[Call] = []
    start = 0
    while head := _HEAD.match(body, start):
        arguments: dict[str, Any] = {}
        start = head.end()
        while key := _KEYWORD.match(body, start):
            if key[1] in arguments:
                raise ValueError("an argument is given twice")
            arguments[key[1]], start = _DECODER.raw_decode(body, key.end())
        if not (close := _CLOSE.match(body, start)):
            raise ValueError("a call is not closed")
        start = close.end()
        calls.append(Call(head[1], _dumped(arguments)))
    if body[start:].strip():
        raise ValueError("text after the calls")
    return calls


@dataclass(frozen=True)
class NamedJson:
    """A codec of calls with JSON arguments: ``pattern`` has the groups name, arguments and optionally id."""

    pattern: re.Pattern[str]

    def __call__(self, body: str, schemas: Schemas) -> list[Call]:
        found = self.pattern.fullmatch(body.strip())
        if not found:
            raise ValueError("no name with arguments")
        groups = found.groupdict()
        arguments = _DECODER.decode(groups["arguments"] or "{}")
        return [Call(groups["name"], _dumped(arguments), groups.get("id"))]


BRACED = NamedJson(re.compile(r"call:(?P<name>[^\s{]+)(?P<arguments>\{.*)", re.DOTALL))
"""Reads call:f{"a": 1}."""


def braced_calls(body: str, schemas: Schemas) -> list[Call]:
    """Reads call:f{a:1,b:<|"|>text<|"|>} (Gemma 4): JSON in which keys have no quotes, and strings have a token."""
    return BRACED(_BRACED_TEXT.sub(lambda text: json.dumps(text[1] or (text[2] or "").rstrip()), body), schemas)


@dataclass(frozen=True)
class Tagged:
    """A codec of calls with tagged arguments: ``key`` matches the opening tag of a value, ``closes`` are closing tags.

    The group of ``name`` is the function's name. The first group of ``key`` is the parameter's name, and the optional
    second group tells whether the value is a string or JSON. Without it, the tool's schema gives the type.
    """

    name: re.Pattern[str]
    key: re.Pattern[str]
    closes: tuple[str, ...]

    def __call__(self, body: str, schemas: Schemas) -> list[Call]:
        head, *parts = self.key.split(body)
        found = self.name.fullmatch(head)
        if not found:
            raise ValueError("no name")
        properties = schemas.get(found[1], {})
        arguments: dict[str, Any] = {}
        width = self.key.groups + 1
        for start in range(0, len(parts), width):
            key, *is_string, text = parts[start : start + width]
            if key in arguments:
                raise ValueError("an argument is given twice")
            schema = _WRITTEN_AS[is_string[0]] if is_string else properties.get(key)
            arguments[key] = coerced(self._value(text), schema)
        return [Call(found[1], _dumped(arguments))]

    def _value(self, text: str) -> str:
        text = text.rstrip()
        for close in self.closes:
            if text.endswith(close):
                return text.removesuffix(close)
        raise ValueError("an argument is not closed")


def coerced(text: str, schema: Any) -> Any:
    """Converts ``text`` to a type of ``schema``; returns it unchanged if no other type than string fits."""
    others = kinds(schema) - {"string"}
    if others:
        for read in (_DECODER.decode, _literal):  # templates that print lists teach models Python syntax
            with contextlib.suppress(*_UNREADABLE):
                value = read(text)
                if _KIND_OF[type(value)] & others:
                    return value
    return text


def kinds(schema: Any) -> set[str]:
    """Returns the JSON types that ``schema`` names in its types, choices and values; empty if it names none."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    found = {named} if isinstance(named, str) else {kind for kind in _listed(named) if isinstance(kind, str)}
    for choice in [choice for name in ("anyOf", "oneOf", "allOf") for choice in _listed(schema.get(name))]:
        found |= kinds(choice)
    for value in () if found else [*_listed(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]:
        found |= _KIND_OF.get(type(value), set())
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json_call(item: Any) -> Call:
    """Converts ``item`` to a call. Raises ValueError for further fields, so that no text of the model is lost."""
    if isinstance(item, dict) and item.keys() <= {"type", "id", "function"} and isinstance(item.get("function"), dict):
        item = item | item["function"]
        del item["function"]
    if not isinstance(item, dict) or not item.keys() <= _CALL_KEYS or {"arguments", "parameters"} <= item.keys():
        raise ValueError("not a call")
    arguments = item.get("arguments", item.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = _DECODER.decode(arguments)
    name, call_id = item.get("name"), item.get("id")
    if not isinstance(name, str) or not isinstance(call_id, str | None) or item.get("type", "function") != "function":
        raise ValueError("not a call of a function")
    return Call(name, _dumped(arguments), call_id)


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("not a call with named arguments")
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    if None in arguments:
        raise ValueError("arguments without a name")
    return Call(ast.unparse(node.func), _dumped(arguments))


def _python(text: str) -> ast.expr:
    if len(text) > MAX_PYTHONIC:
        raise ValueError("too long")
    with warnings.catch_warnings(action="ignore"):  # about invalid escapes in strings
        return ast.parse(text.strip(), mode="eval").body


def _literal(text: str) -> Any:
    return ast.literal_eval(_python(text))


def _dumped(arguments: Any) -> str:
    """Returns ``arguments`` as JSON text. Raises ValueError if they are no object, or not valid JSON in UTF-8."""
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no object")
    text = _json(arguments)
    text.encode()
    return text


def _json(value: Any) -> str:
    match value:
        case Numeral():
            return value.text
        case dict():
            return f"{{{', '.join(f'{_json(str(key))}: {_json(item)}' for key, item in value.items())}}}"
        case list():
            return f"[{', '.join(map(_json, value))}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Numeral:
    """A number in the model's spelling, which is too large for a double or too long to parse."""

    text: str


def _float(text: str) -> float | Numeral:
    value = float(text)
    return value if math.isfinite(value) else Numeral(text)


def _int(text: str) -> int | Numeral:
    return int(text) if len(text) <= MAX_DIGITS else Numeral(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, parse_int=_int, strict=False)
_BRACED_TEXT = re.compile(r'<\|"\|>(.*?)<\|"\|>|(?<=[{,])\s*([^\s{}\[\],:"<>][^{}\[\],:"<>]*)(?=:)', re.DOTALL)
"""A string, or a key without quotes."""
_HEAD = re.compile(r"\s*+([\w.-]++)\(")
_KEYWORD = re.compile(r"(?>\s*,)?\s*+([^\s=(),]++)\s*+=\s*+")
_CLOSE = re.compile(r"\s*+\)")
_NEXT_VALUE = re.compile(r"[^\s;,]")
_KIND_OF = {
    dict: {"object"},
    list: {"array"},
    str: {"string"},
    int: {"integer", "number"},
    float: {"number"},
    Numeral: {"integer", "number"},
    bool: {"boolean"},
    type(None): {"null"},
}
_WRITTEN_AS = {
    "true": {"type": "string"},
    "false": {"type": ["object", "array", "number", "boolean", "null"]},
}
