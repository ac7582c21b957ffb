"""What request bodies of all APIs share: fields are honoured, ignored and reported, or refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

from freedive.engine.sampling import RANGES, Sampling
from freedive.errors import UserError
from freedive.json_object import Json

_REPORTABLE = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
"""Names of fields that may stand in a header and in a log."""
_MAX_REPORTED = 32
_ignored: ContextVar[set[str] | None] = ContextVar("ignored", default=None)


def report_ignored_to(names: set[str]) -> None:
    """From here on, what the request of this context sends and nobody honours is added to ``names``."""
    _ignored.set(names)


def ignore(name: str) -> None:
    """Reports that the field ``name`` was sent, and has no effect."""
    names = _ignored.get()
    if names is not None and len(names) < _MAX_REPORTED and _REPORTABLE.fullmatch(name):
        names.add(name)


def _as_accepted(schema: Json, body: type[RequestBody]) -> None:
    """Says in the schema of ``body`` what it accepts beyond its fields: null, and fields without effect."""
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
    """``node`` or null, with the bounds of Sampling where it names a number there."""
    low, high = RANGES.get(name, (None, None))
    bounds = {} if low is None else {"minimum": low, "maximum": high}
    label = {key: value for key, value in node.items() if key in ("default", "title")}
    options = node.get("anyOf", [{key: value for key, value in node.items() if key not in label}])
    numbers = ({"type": "integer"}, {"type": "number"})
    options = [option | bounds if option in numbers else option for option in options if option != NULL]
    return label | {"anyOf": [*options, NULL]}


def _failing_fast(schema: Any) -> Any:
    """``schema`` of pydantic's core, whose lists and objects have one error at most."""
    if isinstance(schema, list):
        return [_failing_fast(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    nodes = {name: _failing_fast(node) for name, node in schema.items()}
    return nodes | {"fail_fast": True} if schema.get("type") in ("list", "dict") else nodes


class RequestBody(BaseModel):
    """A JSON object from a client. null means absent; what would not be honoured is reported, or refused by name.

    ``ignored`` fields may have any value: they label a request or advise, and do not change its answer. ``synonyms``
    are other names of fields. ``unsupported`` maps fields that are not served to the values that ask for nothing; any
    other value is refused. A field without an entry is refused, but in a class that ``ignores_unknown``: there it
    describes what was, not what is asked for. Whatever is ignored is reported.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_as_accepted)
    ignored: ClassVar[frozenset[str]] = frozenset()
    synonyms: ClassVar[Mapping[str, str]] = {}
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    ignores_unknown: ClassVar[bool] = False

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validation of lists and objects stops at the first error: the others would only be dropped."""
        return cast(CoreSchema, _failing_fast(handler(source)))

    @model_validator(mode="before")
    @classmethod
    def _honoured(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        honoured: Json = {}
        for name, value in data.items():
            ours = cls.synonyms.get(name, name)
            if value is None:
                continue
            if ours in fields:
                if honoured.setdefault(ours, value) != value:
                    raise UserError(f"'{name}' is another name of a field that is there", "Send one", param=name)
            elif name in cls.unsupported:
                if not any(_same(value, nothing) for nothing in cls.unsupported[name]):
                    raise UserError(f"'{name}' is not supported by this server", "Leave it out", param=name)
            elif name in cls.ignored or cls.ignores_unknown:
                ignore(name)
            else:
                raise UserError(f"'{name}' is not a field of this request", "Leave it out", param=name)
        return honoured

    def given(self, **others: Any) -> dict[str, Any]:
        """The fields of Sampling that the request sets, and ``others``; the rest is the model's to choose."""
        shared = type(self).model_fields.keys() & Sampling.__dataclass_fields__.keys()
        fields = {name: value for name in shared if (value := getattr(self, name)) is not None}
        return fields | others


def _same(value: object, nothing: object) -> bool:
    """Whether they are equal, and not one of them true and the other 1."""
    return value == nothing and isinstance(value, bool) == isinstance(nothing, bool)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is not text") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""JSON can spell strings that no encoding can write."""

Label = Annotated[Text, Field(max_length=1 << 16)]
"""What a response repeats as it is, though no model reads it."""


def _writable(value: Json) -> Json:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


JsonObject = Annotated[Json, AfterValidator(_writable)]
"""Whatever a client likes, as long as it can be written again."""


def type_of(value: Any) -> str | None:
    """The type that an object from a client says it has; None for what is no object, or says it in no text."""
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def only(param: str, *kinds: str | None, thing: str = "", remedy: str = "") -> Callable[[Any], Any]:
    """Looks over a list: things of a type that we do not serve are named before their fields are looked at.

    A ``thing`` goes by the name of its field, where it has no other.
    """

    def check(value: Any) -> Any:
        for item in value if isinstance(value, list) else ():
            if isinstance(item, dict) and item.get("type") not in kinds:
                what = f"{thing or repr(param)} of type {item.get('type')!r} is not supported"
                raise UserError(what, remedy or f"Send {' or '.join(filter(None, kinds))}", param=param)
        return value

    return check


def listed(value: Any) -> Any:
    """One string as a list of it; everything else as it is."""
    return [value] if isinstance(value, str) else value


def writable(value: Any) -> Any:
    """``value`` if all texts in it are. Raises ValueError."""
    json.dumps(value, ensure_ascii=False).encode()
    return value
