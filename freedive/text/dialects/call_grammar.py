"""Grammars of tool calls in the syntax of a dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from freedive.errors import UserError
from freedive.text.dialects.codecs import coerced, kinds, named_properties, resolved
from freedive.text.dialects.dialect import Dialect, Mode
from freedive.text.dialects.parser import active_markers
from freedive.text.format import json_grammar
from freedive.text.lark import Lark, any_of, quoted
from freedive.text.schema.references import References, TooManySteps
from freedive.text.schema.rewrite import NotKept, rewritten
from freedive.text.tools import checked_name

_PLACE = re.compile(r"(\$[a-z]+|\n)")
_KEY = re.compile(r'[^"<>\n]+')
_NAME = "/[A-Za-z0-9_.-]{1,64}/"
_ROOT = frozenset({"type", "properties", "required", "additionalProperties", "$defs"})
_JOINED = frozenset({"$ref", "allOf", "$defs"})
_REST = frozenset({"additionalProperties", "patternProperties", "items", "prefixItems"})
"""Keywords about properties and items that other keywords do not name."""

_ENUMERATED = frozenset({"type", "enum", "const"})
_BOUNDED = frozenset({"type", "minLength", "maxLength"})


class CallGrammar:
    """Writes the calls of ``functions`` into a grammar.

    Raises UserError for an invalid schema, and NotKept for a strict function whose schema cannot be enforced; for other
    functions, keywords that cannot be enforced are dropped.
    """

    def __init__(self, lark: Lark, dialect: Dialect, functions: Sequence[Mapping[str, Any]]) -> None:
        assert dialect.writing
        self._lark = lark
        self._dialect = dialect
        self._writing = writing = dialect.writing
        self._marks_strings = "$string" in writing.parameter  # whether calls mark values that are strings
        first = writing.before or writing.call
        self.opening = next((marker for marker in dialect.marks if first.startswith(marker)), "")
        """The marker before all calls, "" if there is none."""
        self._call = any_of([self._one(function) for function in functions])

    def after_opening(self, *, parallel: bool) -> str:
        """Returns the rule of one call, or of several if ``parallel``, after the opening marker."""
        writing, lark = self._writing, self._lark
        start = len(self.opening)
        following = lark.literal(writing.between or "") + " SPACE? "
        if writing.before:
            before = self._filled(writing.before[start:])
        else:
            before, following = "", following + lark.literal(self.opening)
        more = f"({following} {self._call})*" if parallel and writing.between is not None else ""
        return f"{before} {self._call} {more} SPACE? {self._filled(writing.after)}"

    def _one(self, function: Mapping[str, Any]) -> str:
        call = self._writing.call if self._writing.before else self._writing.call.removeprefix(self.opening)
        return f"({self._filled(call.replace('$name', checked_name(function)), function)})"

    def _filled(self, template: str, function: Mapping[str, Any] | None = None) -> str:
        return " ".join(self._piece(piece, function or {}) for piece in _PLACE.split(template) if piece)

    def _piece(self, piece: str, function: Mapping[str, Any]) -> str:
        match piece:
            case "\n":
                return "SPACE?"
            case "$number":
                return self._lark.terminal("/[0-9]{1,3}/")
            case "$id":
                return self._lark.terminal("/[a-z0-9]{10}/")
            case "$arguments":
                return self._lark.part(json_grammar(_object_schema(function), param="tools", loose=_is_loose(function)))
            case "$parameters":
                return " ".join(self._parameters(function))
        return self._lark.literal(piece)

    def _parameters(self, function: Mapping[str, Any]) -> Iterator[str]:
        given, loose = _object_schema(function), _is_loose(function)
        whole = rewritten(given, "tools", loose=loose)[0]
        references, given_references = References(whole), References(given)
        root = _flat(whole, references)
        properties, required = root.get("properties", {}), root.get("required", [])
        unnamed = set(required) - properties.keys()
        unknown = (root.keys() - _ROOT) | unnamed
        if unknown and not loose:
            _refuse(function, "", min(unknown))
        read = named_properties(given, given_references)
        for key, schema in properties.items():
            plain = resolved({} if schema is True else _flat(schema, references), references)
            same = self._marks_strings or kinds(plain) == kinds(resolved(read.get(key), given_references))
            written = self._parameter(function, key, plain, whole, same) if plain is not False else []
            if key in required and not written:
                _refuse(function, key, "it has no value", UserError)
            if written:
                yield any_of(written) if key in required else f"{any_of(written)}?"
        if unnamed or (unknown and not properties):
            yield self._any_parameters()

    def _parameter(
        self, function: Mapping[str, Any], key: str, schema: Any, root: Mapping[str, Any], same: bool
    ) -> list[str]:
        """Returns rules for writing the parameter ``key``; ``same``: the parser reads it with the same types."""
        try:
            if not _KEY.fullmatch(key):
                _refuse(function, key, "its name", UserError)
            if not same:
                _refuse(function, key, "its type, which only a condition tells")
            return [*self._ways(function, key, schema, root)]
        except NotKept:
            if not _is_loose(function):
                raise
        types = kinds(schema) - {"string"}
        value = (
            self._lark.part(json_grammar({"type": sorted(types)}, param="tools"))
            if self._marks_strings and types
            else None
        )
        return [self._written(key, "true", None), *([self._written(key, "false", value)] if value else [])]

    def _any_parameters(self) -> str:
        """Returns the rule of parameters with any names and any text values."""
        before, after = self._writing.parameter.replace("$string", "true").split("$key")
        between, tail = after.split("$value")
        taboo = [before, *active_markers(self._dialect, Mode.CALL, begun=True)]
        name = f"{self._lark.literal(before)} {self._lark.terminal(_NAME)} {self._lark.literal(between)}"
        return f"({name} {self._lark.until([tail.rstrip()], taboo, 'ANY')} SPACE?)*"

    def _ways(self, function: Mapping[str, Any], key: str, schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
        """Yields rules for writing the parameter ``key``: as text, as JSON or both."""
        types = kinds(schema)
        texts: list[str] | None = []
        if types == {"string"} and _BOUNDED.issuperset(schema) and len(schema) > 1:
            length = f"{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"
            yield self._written(key, "true", None, like=f"/(?s:.{length})/")
        elif "string" in types or not types or any(not kinds(choice) for choice in _choices(schema)):
            texts = self._texts(function, key, schema)
            if texts is None or texts:
                yield self._written(key, "true", None if texts is None else any_of([*map(quoted, texts)]))
        if types - {"string"} and (self._marks_strings or texts is not None):
            only = {"type": sorted(types - {"string"})} if "string" in types else {}
            part = self._lark.part(json_grammar({**schema, "$defs": root.get("$defs", {}), **only}, param="tools"))
            yield self._written(key, "false", part)

    def _written(self, key: str, is_string: str, value: str | None, like: str = "ANY") -> str:
        """Returns the rule of a parameter with ``value``; if it is None, with any text that matches ``like``."""
        parameter = self._writing.parameter
        head, tail = parameter.replace("$key", key).replace("$string", is_string).split("$value")
        end = tail.rstrip("\n")
        if value is None:
            taboo = [parameter.partition("$key")[0], *active_markers(self._dialect, Mode.CALL, begun=True)]
            rest = self._lark.until([end], taboo, like)
        else:
            rest = f"{value} {self._lark.literal(end)}"
        return f"({self._lark.literal(head)} {rest} SPACE?)"

    def _texts(self, function: Mapping[str, Any], key: str, schema: Any) -> list[str] | None:
        """Returns the strings that the ``schema`` of ``key`` allows, None if it allows all strings."""
        choices = _choices(schema)
        if choices and (unknown := schema.keys() - {"anyOf", "oneOf", "type"}):
            _refuse(function, key, min(unknown))
        texts: list[str] = []
        free = False
        for choice in choices or [schema]:
            types = kinds(choice)
            if self._marks_strings and types and "string" not in types:
                continue
            if unknown := choice.keys() - _ENUMERATED:
                _refuse(function, key, min(unknown))
            values = [choice["const"]] if "const" in choice else choice.get("enum")
            if values is None and (not types or "string" in types):
                free = True
            texts += [value for value in values or [] if isinstance(value, str)]
        if free:
            return None
        for text in texts:
            if not self._marks_strings and coerced(text, schema) != text:
                _refuse(function, key, f"{text!r}, which could be text or not")
        return texts


def _choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the members of anyOf or oneOf of ``schema`` that allow any value."""
    choices = schema.get("anyOf") or schema.get("oneOf") or []
    return [{} if choice is True else choice for choice in choices if choice is not False]


def _object_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of the arguments of ``function``. Raises UserError if it does not allow an object."""
    schema = function.get("parameters")
    if schema in (None, {}):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if schema is True:
        return {"type": "object"}
    if not isinstance(schema, Mapping):
        _refuse(function, "", "they are not a schema of an object", UserError)
    named = schema.get("type", "object")
    if "object" not in (named if isinstance(named, list) else [named]):
        _refuse(function, "", f"type {named!r}", UserError)
    return {**schema, "type": "object"}


def _is_loose(function: Mapping[str, Any]) -> bool:
    """Whether the arguments of ``function`` may differ from its schema, because it is not strict."""
    return not function.get("strict")


def _flat(schema: Any, references: References) -> Any:
    """Merges ``schema`` with its $ref and allOf into one schema, if their keywords do not conflict."""
    try:
        parts = references.parts(schema)
    except TooManySteps:
        return schema
    is_whole = len(parts) == 1 + sum(len(part.get("allOf", [])) + ("$ref" in part) for part in parts)
    nested = [part for part in parts if part.keys() & (_REST | {"properties"})]
    if not is_whole or (len(nested) > 1 and any(part.keys() & _REST for part in nested)):
        return schema
    flat: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            known = flat.setdefault(key, value)
            if key == "properties" and not known.keys() & value.keys():
                flat[key] = {**known, **value}
            elif key == "required":
                flat[key] = [*dict.fromkeys([*known, *value])]
            elif known != value and key not in _JOINED:
                return schema
    return {key: value for key, value in flat.items() if key not in _JOINED}


def _refuse(function: Mapping[str, Any], key: str, what: str, kind: type[UserError] = NotKept) -> NoReturn:
    where = f"parameter {key!r}" if key else "parameters"
    raise kind(
        f"The {where} of {function['name']!r} cannot be enforced in this model's call syntax: {what}",
        "Leave that out, or use tool_choice auto without strict",
        param="tools",
    )
