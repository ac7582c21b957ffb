"""The few ways in which models write the name and the arguments of a tool call."""

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
"""Characters of a call in Python's syntax: the time and memory of its parser grow much faster than with JSON."""

_UNREADABLE = (ValueError, TypeError, LookupError, SyntaxError, RecursionError, MemoryError)
"""What a model can make json and ast raise."""

_CALL_KEYS = frozenset({"id", "type", "name", "arguments", "parameters"})


def read_calls(codecs: Iterable[Codec], body: str, schemas: Schemas) -> list[Call]:
    """The calls in ``body`` by the first codec that can read it; none if no codec can."""
    for codec in codecs:
        try:
            return codec(body, schemas)
        except _UNREADABLE:
            continue
    return []


def parameter_schemas(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """The parameters' schemas of ``tools`` as OpenAI has them: {"type": "function", "function": {...}}."""
    found: dict[str, Mapping[str, Any]] = {}
    for function in (tool["function"] for tool in tools):
        root = _mapping(function.get("parameters"))
        references = References(root)
        properties = named_properties(root, references).items()
        found[function["name"]] = {key: resolved(schema, references) for key, schema in properties}
    return found


def named_properties(root: Any, references: References) -> dict[str, Any]:
    """The properties that ``root`` names, also behind $ref and in its choices; one named twice may be as either."""
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
    """``schema`` with what its own $ref and those of its choices refer to."""
    if not isinstance(schema, Mapping):
        return schema
    schema = references.merged(schema)
    if not isinstance(schema, Mapping):
        return schema
    choices = {name: _listed(schema[name]) for name in ("anyOf", "oneOf", "allOf") if name in schema}
    return {**schema, **{name: [references.merged(choice) for choice in each] for name, each in choices.items()}}


def json_calls(body: str, schemas: Schemas) -> list[Call]:
    """{"name": ..., "arguments": {...}} once or several times, or lists of these; also with "parameters"."""
    calls: list[Call] = []
    start = 0
    while begin := _NEXT_VALUE.search(body, start):
        value, start = _DECODER.raw_decode(body, begin.start())
        calls += [_json_call(item) for item in (value if isinstance(value, list) else [value])]
    return calls


def pythonic_calls(body: str, schemas: Schemas) -> list[Call]:
    """[f(a=1), g()] in Python's syntax, with literals only; also a single call."""
    tree = _python(body)
    return [_python_call(node) for node in (tree.elts if isinstance(tree, ast.List) else [tree])]


@dataclass(frozen=True)
class NamedJson:
    """A name, perhaps an id, and the arguments as a JSON object: the groups of ``pattern``."""

    pattern: re.Pattern[str]

    def __call__(self, body: str, schemas: Schemas) -> list[Call]:
        found = self.pattern.fullmatch(body.strip())
        if not found:
            raise ValueError("no name with arguments")
        groups = found.groupdict()
        arguments = _DECODER.decode(groups["arguments"] or "{}")
        return [Call(groups["name"], _dumped(arguments), groups.get("id"))]


@dataclass(frozen=True)
class Tagged:
    """A name, and arguments between tags: ``key`` opens a value, and one of ``closes`` ends it.

    ``name`` has the function's name as its group, ``key`` the parameter's and, if it has a second one, whether the
    value is a string or JSON. Without it values are untyped text, and the tool's schema says what they are.
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
    """``text`` as a value of ``schema``; as it is, if the schema has no type, or none that fits."""
    others = kinds(schema) - {"string"}
    if others:
        for read in (_DECODER.decode, _literal):  # templates that print lists make models write Python's
            with contextlib.suppress(*_UNREADABLE):
                value = read(text)
                if _KIND_OF[type(value)] & others:
                    return value
    return text


def kinds(schema: Any) -> set[str]:
    """The JSON types that ``schema``, which clients write, allows as far as it says."""
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
    """``item`` as a call, unless it says more than a call can hold: what a model wrote is not to be lost."""
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
    with warnings.catch_warnings(action="ignore"):  # about escapes in the model's strings
        return ast.parse(text.strip(), mode="eval").body


def _literal(text: str) -> Any:
    return ast.literal_eval(_python(text))


def _dumped(arguments: Any) -> str:
    """The JSON text of ``arguments``. ValueError if they are no object, or what JSON and UTF-8 cannot hold."""
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
    """A number that Python cannot read, as the model wrote it."""

    text: str


def _float(text: str) -> float | Numeral:
    value = float(text)
    return value if math.isfinite(value) else Numeral(text)


def _int(text: str) -> int | Numeral:
    return int(text) if len(text) <= MAX_DIGITS else Numeral(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, parse_int=_int, strict=False)
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
