"""The base class of all request bodies: each field is honoured, ignored and reported, or refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

from freedive.engine.sampling import RANGES, Sampling
from freedive.errors import UserError
from freedive.json_object import Json

_REPORTABLE = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
"""Field names that are safe in a response header and in a log."""
_MAX_REPORTED = 32
MAX_DEPTH = 100
"""The largest nesting depth of lists and objects in a body, and in any object that is stored."""
_ignored: ContextVar[set[str] | None] = ContextVar("ignored", default=None)
_called: ContextVar[dict[str, str] | None] = ContextVar("called", default=None)


def report_to(ignored: set[str]) -> None:
    """Makes :func:`ignore` add to ``ignored``, and :func:`call` to new names, in the current context: one request's."""
    _ignored.set(ignored)
    _called.set({})


def call(names: Mapping[str, str]) -> None:
    """Makes errors of the request name fields as its client does: ``names`` has the client's name of each of ours."""
    called = _called.get()
    if called is not None:
        called.update({ours: called.get(theirs, theirs) for ours, theirs in names.items()})


def client_name(field: str | None) -> str | None:
    """Returns the client's name of a field of ours, also in errors of a stream."""
    return (_called.get() or {}).get(field or "", field)


def ignore(name: str) -> None:
    """Reports that the request has the field ``name``, and that the field has no effect."""
    names = _ignored.get()
    if names is not None and len(names) < _MAX_REPORTED and _REPORTABLE.fullmatch(name):
        names.add(name)


def _as_accepted(schema: Json, body: type[RequestBody]) -> None:
    """Adds null, and fields without effect, to the JSON schema of ``body``, which accepts them."""
    required = schema.get("required", [])
    fields = schema.get("properties", {})
    schema["properties"] = {
        **{name: node if name in required else _or_null(name, node) for name, node in fields.items()},
        **{name: {"description": "accepted, without effect"} for name in sorted(body.ignored)},
        **{name: _or_null(ours, fields[ours]) for name, ours in sorted(body.synonyms.items())},
        **{name: {"enum": [*values, None]} for name, values in sorted(body.unsupported.items())},
    }
    schema["additionalProperties"] = True if body.ignores_unknown else NULL


NULL: Json = {"type": "null"}


def _or_null(name: str, node: Json) -> Json:
    """Returns a schema that accepts ``node`` or null, with the bounds of Sampling if ``name`` is one of its numbers."""
    low, high = RANGES.get(name, (None, None))
    bounds = {} if low is None else {"minimum": low, "maximum": high}
    label = {key: value for key, value in node.items() if key in ("default", "title")}
    options = node.get("anyOf", [{key: value for key, value in node.items() if key not in label}])
    numbers = ({"type": "integer"}, {"type": "number"})
    options = [option | bounds if option in numbers else option for option in options if option != NULL]
    return label | {"anyOf": [*options, NULL]}


def _failing_fast(schema: Any) -> Any:
    """Returns a pydantic-core schema with ``fail_fast`` in all lists and objects."""
    if isinstance(schema, list):
        return [_failing_fast(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    nodes = {name: _failing_fast(node) for name, node in schema.items()}
    return nodes | {"fail_fast": True} if schema.get("type") in ("list", "dict") else nodes


class RequestBody(BaseModel):
    """A JSON object from a client. null means absent; a field that is not honoured is reported, or refused by name.

    ``ignored`` fields may have any value: they are labels or advice and do not change the answer. ``synonyms`` maps
    other names to fields. ``called`` has the API's names of fields that only later errors name. ``unsupported`` maps
    fields that are not implemented to their neutral values; any other value is refused. An unknown field is refused,
    except in a class that ``ignores_unknown``: such a class describes earlier turns or tools, not the answer. Every
    ignored field is reported.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_as_accepted)
    ignored: ClassVar[frozenset[str]] = frozenset()
    synonyms: ClassVar[Mapping[str, str]] = {}
    called: ClassVar[Mapping[str, str]] = {}
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    ignores_unknown: ClassVar[bool] = False

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Returns a schema that stops at the first error of a list or object: further errors are not reported."""
        return cast(CoreSchema, _failing_fast(handler(source)))

    @model_validator(mode="before")
    @classmethod
    def _honoured(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        honoured: Json = {}
        given: dict[str, str] = {}
        for name, value in data.items():
            ours = cls.synonyms.get(name, name)
            if value is None:
                continue
            if ours in fields:
                first = given.setdefault(ours, name)
                if first != name and honoured[ours] != value:
                    what = f"'{name}' is another name of '{first}', which has another value"
                    raise UserError(what, "Send one of them", param=name)
                honoured[ours] = value
            elif name in cls.unsupported:
                if not any(_same(value, neutral) for neutral in cls.unsupported[name]):
                    raise UserError(f"'{name}' is not supported by this server", "Leave it out", param=name)
            elif name in cls.ignored or cls.ignores_unknown:
                ignore(name)
            else:
                raise UserError(f"'{name}' is not a field of this request", "Leave it out", param=name)
        call({**cls.called, **{ours: name for ours, name in given.items() if ours != name}})
        return honoured

    def given(self, **others: Any) -> dict[str, Any]:
        """Returns the fields of Sampling that the request sets, and ``others``; the model's defaults fill the rest."""
        shared = type(self).model_fields.keys() & Sampling.__dataclass_fields__.keys()
        fields = {name: value for name in shared if (value := getattr(self, name)) is not None}
        return fields | others


def synonyms_of(field: str) -> set[str]:
    """Returns the other names that ``field`` has in any request body."""
    bodies: list[type[RequestBody]] = [RequestBody]
    for body in bodies:
        bodies += body.__subclasses__()
    return {theirs for body in bodies for theirs, ours in body.synonyms.items() if ours == field}


def _same(value: object, neutral: object) -> bool:
    """Whether the values are equal, where true and 1 are different."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is not text") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""A string without lone surrogates, which JSON can express but UTF-8 cannot encode."""

Label = Annotated[Text, Field(max_length=1 << 16)]
"""A bounded string that a response repeats, and that no model reads."""


def _writable(value: Json) -> Json:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


JsonObject = Annotated[Json, AfterValidator(_writable)]
"""Any JSON object that can be encoded again, also within other objects."""


def type_of(value: Any) -> str | None:
    """Returns the string under "type" in an object from a client; None if there is none."""
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def only(param: str, *kinds: str | None, thing: str = "", remedy: str = "") -> Callable[[Any], Any]:
    """Returns a validator that refuses items of a list whose "type" is not in ``kinds``, before their fields.

    The error calls an item ``thing``, or by the field name ``param`` if ``thing`` is empty.
    """

    def check(value: Any) -> Any:
        for item in value if isinstance(value, list) else ():
            if isinstance(item, dict) and item.get("type") not in kinds:
                what = f"{thing or repr(param)} of type {item.get('type')!r} is not supported"
                raise UserError(what, remedy or f"Send {' or '.join(filter(None, kinds))}", param=param)
        return value

    return check


def listed(value: Any) -> Any:
    """Returns a list of one string for a string, and any other value unchanged."""
    return [value] if isinstance(value, str) else value


def writable(value: Any) -> Any:
    """Returns ``value`` if all its strings can be encoded as UTF-8, else raises ValueError."""
    json.dumps(value, ensure_ascii=False).encode()
    return value
