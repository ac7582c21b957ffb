"""Rewrites JSON schemas for llguidance, so that the compiled grammar allows no value that the schema does not allow.

Keywords without effect on validity are dropped, keywords that llguidance lacks are expressed with others, and keywords
that cannot be enforced are refused by name. Bounds that llguidance cannot represent (doubles, 64-bit integers) are
rounded inwards. Every definition that is referred to gets a plain name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from decimal import Decimal
from typing import Any, NoReturn

from freedive.errors import UserError
from freedive.text.schema import logic
from freedive.text.schema.logic import TYPES, Schema
from freedive.text.schema.numbers import NumberError, checked_multiple, inner_bounds, is_exact, short
from freedive.text.schema.references import References, TooManySteps, UnknownReference

FORMATS = frozenset({
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
})  # fmt: skip
"""Formats that are enforced; all others are annotations."""

MAX_DEPTH = 100
MAX_SCHEMAS = 20_000
MAX_LENGTH = 1 << 20
"""The length of texts and lists beyond which a limit has no effect, because no answer is that long."""

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OBJECT = ("properties", "patternProperties", "additionalProperties")
_APPLICATORS = frozenset({"allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "dependencies"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_REFUSED = frozenset({
    "uniqueItems", "maxContains", "minContains", "propertyNames", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
})  # fmt: skip
_PLAIN_ESCAPES = frozenset("dDwWsSbBnrtfpPAz")
"""Letters after a backslash that mean no control character, or one with a short escape in JSON."""


_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")


class NotKept(UserError):
    """A schema is valid, but a constraint cannot enforce it."""


def rewritten(schema: Mapping[str, Any], param: str, *, loose: bool = False) -> tuple[Schema, bool]:
    """Returns ``schema`` for llguidance, and whether its answers need escapes of the form \\u0000.

    Raises NotKept, about ``param``, for keywords that cannot be enforced; with ``loose`` they are dropped. Raises
    UserError for an invalid schema.
    """
    try:
        writer = _Rewriter(schema, param, escapes=False, loose=loose)
        result = writer.root()
        if writer.has_controls:
            return _Rewriter(schema, param, escapes=True, loose=loose).root(), True
    except TooManySteps:
        raise UserError("The schema refers to itself in too many ways", "Make it simpler", param=param) from None
    return result, False


class _Rewriter:
    """Rewrites one schema. With ``escapes``, objects with named properties allow no other properties.

    Otherwise an escape in a key could spell a named property, which llguidance would treat as an unnamed one.
    """

    def __init__(self, schema: Mapping[str, Any], param: str, *, escapes: bool, loose: bool) -> None:
        self.has_controls = False
        self._loose = loose
        self._left_out = suppress(NotKept) if loose else nullcontext()
        self._schema = schema
        self._param = param
        self._escapes = escapes
        self._references = References(schema)
        self._num_schemas = 0
        self._multiples: list[Decimal] = []
        self._keywords: dict[str, Callable[[Any, str], Any]] = {
            **dict.fromkeys(("additionalProperties", "additionalItems"), self._any),
            "items": lambda value, path: self._list(value, path) if isinstance(value, list) else self._any(value, path),
            **dict.fromkeys(_LISTS, self._list),
            "properties": self._named,
            "patternProperties": self._patterns,
            **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), self._count),
            **dict.fromkeys(("minProperties", "maxProperties"), self._count),
            "required": self._names,
            "type": self._type,
            "enum": self._values,
            "const": self._value,
            "pattern": self._pattern,
        }

    def root(self) -> Schema:
        """Returns the rewritten schema with the definitions that it refers to."""
        result = self._any(self._schema, "")
        definitions: dict[str, Any] = {}
        while pending := self._references.pending():
            for name, target in pending.items():
                definitions[name] = self._any(target, f"/{name}")
        if not isinstance(result, dict):
            result = {"allOf": [result]}
        return {**result, "$defs": definitions} if definitions else result

    def _any(self, schema: Any, path: str) -> Schema | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            self._refuse(path, "is no schema: that is an object, true or false")
        self._num_schemas += 1
        if self._num_schemas > MAX_SCHEMAS or path.count("/") > MAX_DEPTH:
            self._refuse("", f"has more than {MAX_SCHEMAS} parts, or is nested deeper than {MAX_DEPTH}: use $defs")
        parts = self._references.parts(schema) if "unevaluatedProperties" in schema else []
        result: Schema = {}
        with self._left_out:
            result |= {"$ref": self._reference(schema, path)} if schema.get("$ref") is not None else {}
        schema = {key: value for key, value in schema.items() if value is not None or key == "const"}
        for key in _LISTS & schema.keys():
            if not isinstance(schema[key], list):
                self._refuse(f"{path}/{key}", "is no list of schemas")
        schema = self._simplified(schema)
        if "unevaluatedProperties" in schema:  # properties that only a choice names count as unevaluated
            others = logic.without_others(schema.pop("unevaluatedProperties"), parts)
            schema["allOf"] = [*schema.get("allOf", []), others]
        for key, value in schema.items():
            with self._left_out:
                if key in self._keywords:
                    result[key] = self._keywords[key](value, f"{path}/{key}")
                elif key in _REFUSED or (key == "format" and not isinstance(value, str)):
                    self._refuse(path, f"has {key!r}, which cannot be enforced", NotKept)
                elif key == "format" and value in FORMATS:
                    result[key] = value
        for add in (self._add_numbers, self._add_conditions, self._check_counts):
            with self._left_out:
                add(result, schema, path)
        return self._closed(result) if self._escapes else result

    def _simplified(self, schema: Schema) -> Schema:
        """Returns ``schema`` without keywords that have no effect, in the vocabulary of draft 2020-12."""
        if isinstance(schema.get("items"), list):  # before draft 2020-12
            rest = {"items": schema["additionalItems"]} if "additionalItems" in schema else {}
            items = {"prefixItems": schema["items"]}
            schema = {**{k: v for k, v in schema.items() if k != "items"}, **items, **rest}
        drop = {"additionalItems"}
        if not schema.get("uniqueItems") or schema.get("maxItems") in (0, 1):
            drop.add("uniqueItems")
        for key in ("propertyNames", "unevaluatedProperties", "unevaluatedItems"):
            if schema.get(key) in (True, {}) or (key == "propertyNames" and schema.get(key) == {"type": "string"}):
                drop.add(key)
        if not schema.keys() & _APPLICATORS:
            for key, usual in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
                if key in schema and key not in drop:
                    schema = {usual: schema[key], **schema}
                    drop.add(key)
        if "contains" not in schema or schema.get("minContains") == 1:
            drop.add("minContains")
        elif schema.get("minContains") == 0 and "maxContains" not in schema:
            drop |= {"minContains", "contains"}
        if "contains" not in schema:
            drop.add("maxContains")
        schema = {key: value for key, value in schema.items() if key not in drop}
        choices = schema.get("oneOf")
        wider = {"anyOf": choices} if self._loose else None
        if isinstance(choices, list) and (plain := logic.one_of(choices, self._references.target) or wider):
            rest = {key: value for key, value in schema.items() if key != "oneOf"}
            schema = {**rest, "allOf": [*rest.get("allOf", []), plain]} if "anyOf" in rest else {**rest, **plain}
        if schema.get("uniqueItems"):
            schema = logic.with_distinct_items(schema, self._references.target)
        return logic.with_names(schema, self._references.target)

    def _add_numbers(self, result: Schema, schema: Schema, path: str) -> None:
        try:
            bounds = {key: schema[key] for key in _BOUNDS if key in schema}
            result.update(inner_bounds(bounds, integer=_only_integers(schema.get("type"))))
            if "multipleOf" in schema:
                result["multipleOf"] = checked_multiple(schema["multipleOf"], self._multiples)
        except NumberError as error:
            self._refuse(path, f"has {error}", NotKept)

    def _add_conditions(self, result: Schema, schema: Schema, path: str) -> None:
        """Adds the conditional keywords of ``schema`` to ``result`` as anyOf and allOf."""
        try:
            conditions = [*logic.conditions(schema, self._references.target)]
        except logic.NotExpressible as error:
            self._refuse(path, f"has {error}, which cannot be enforced", NotKept)
        if conditions:
            added = [self._any(condition, f"{path}/") for condition in conditions]
            result["allOf"] = [*result.get("allOf", []), *added]

    def _check_counts(self, result: Schema, _: Schema, path: str) -> None:
        required = result.get("required", [])
        counts: Schema = {key: result.pop(key) for key in ("minProperties", "maxProperties") if key in result}
        least = counts.get("minProperties", 0)
        if least <= len(required):
            counts.pop("minProperties", None)
        if counts and result.get("properties", {}).keys() - set(required):
            self._refuse(path, f"has {min(counts)!r} and optional properties, which cannot be enforced", NotKept)
        if least > 1 + len(required):
            self._refuse(path, "has 'minProperties' beyond the required ones: a key could occur twice", NotKept)
        result |= counts

    def _closed(self, schema: Schema) -> Schema:
        """Returns ``schema`` without unnamed properties, if it has named ones."""
        if not schema.get("properties") and not schema.get("patternProperties"):
            return schema
        others = schema.get("additionalProperties", True)
        more = {} if "patternProperties" in schema else dict.fromkeys(schema.get("required", []), others)
        named = more | schema.get("properties", {})
        return {**schema, "properties": named, "additionalProperties": False}

    def _list(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            self._refuse(path, "is no list of schemas")
        return [self._any(item, f"{path}/{index}") for index, item in enumerate(value)]

    def _named(self, value: Any, path: str) -> Schema:
        if not isinstance(value, Mapping):
            self._refuse(path, "is no object of schemas")
        for name in value:
            self._look_for_controls(str(name))
        return {name: self._any(item, f"{path}/{name.replace('/', '~1')}") for name, item in value.items()}

    def _patterns(self, value: Any, path: str) -> Schema:
        result = self._named(value, path)
        for pattern in result:
            self._pattern(pattern, path)
        return result

    def _pattern(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            self._refuse(path, "is no text")
        self._look_for_controls(value)
        if (len(value) - len(value.rstrip("\\"))) % 2:
            self._refuse(path, "ends in the middle of an escape")
        if _LOOK_AROUND.search(_ESCAPE_OR_CLASS.sub("", value)):
            self._refuse(path, "has look-around, which cannot be enforced", NotKept)
        escaped = value.split("\\\\")
        if any(
            part[0] not in _PLAIN_ESCAPES for text in escaped for part in text.split("\\")[1:] if part[:1].isalnum()
        ):
            self.has_controls = True
        return value

    def _count(self, value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
            self._refuse(path, "is no count: a whole number from 0 on")
        if value > MAX_LENGTH and "/min" in path[path.rfind("/") :]:
            self._refuse(path, f"is more than {MAX_LENGTH}")
        return min(int(value), MAX_LENGTH)

    def _names(self, value: Any, path: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self._refuse(path, "is no list of names")
        for name in value:
            self._look_for_controls(name)
        return [*dict.fromkeys(value)]

    def _type(self, value: Any, path: str) -> Any:
        named = value if isinstance(value, list) else [value]
        if not named or (unknown := [name for name in named if name not in TYPES]):
            self._refuse(path, f"is {unknown[0] if named else 'empty'!r}, which is none of {', '.join(TYPES)}")
        return value

    def _values(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            self._refuse(path, "is no list of values")
        return [self._value(item, path) for item in value]

    def _value(self, value: Any, path: str) -> Any:
        match value:
            case str():
                self._look_for_controls(value)
            case bool() | None:
                pass
            case int() | float():
                if not is_exact(value):
                    self._refuse(path, f"holds {short(value)}, which has too many digits: write it as text", NotKept)
            case list():
                return [self._value(item, path) for item in value]
            case Mapping():
                return {self._value(key, path): self._value(item, path) for key, item in value.items()}
        return value

    def _look_for_controls(self, text: str) -> None:
        if not text.isprintable() and any((char < " " and char not in "\b\f\n\r\t") or char == "\x7f" for char in text):
            self.has_controls = True

    def _reference(self, schema: Mapping[str, Any], path: str) -> str:
        try:
            return f"#/$defs/{self._references.name(schema)}"
        except UnknownReference as error:
            self._refuse(path, str(error), NotKept)

    def _refuse(self, path: str, what: str, kind: type[UserError] = UserError) -> NoReturn:
        where = f"The schema at {path[:200]}" if path else "The schema"
        raise kind(f"{where} {what}", "Correct it or leave it out", param=self._param)


def _only_integers(named: Any) -> bool:
    kinds = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    return "integer" in kinds and "number" not in kinds
