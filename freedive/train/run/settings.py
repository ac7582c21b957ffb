"""Nested dataclasses of settings: built from plain values, changed by dotted names; errors name the setting."""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from freedive.errors import UserError
from freedive.json_object import Json


def apply(values: Json, setting: str) -> None:
    """Sets ``part.name=value`` in ``values``; the value is parsed as TOML, or else taken as text."""
    place, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"{setting!r} sets nothing", "Write part.name=value, such as pretrain.steps=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parts, name = place.split(".")
    for part in parts:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"{place!r} is no setting", "Write part.name=value, such as pretrain.steps=500")
    values[name] = value


def build(kind: type, values: Mapping[str, Any], place: str) -> Any:
    """Builds the dataclass ``kind`` from nested ``values``.

    Raises UserError for a name that is unknown, a value of a wrong type, or one that is missing.
    """
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    for name in values:
        if name not in known:
            raise UserError(
                f"There is no setting {place}{name}", f"Choose one of {', '.join(place + k for k in known)}"
            )
    built = {name: _value(hints[name], value, f"{place}{name}") for name, value in values.items()}
    try:
        return kind(**built)
    except TypeError as error:
        raise UserError(
            f"The settings {place or 'of the run'} are incomplete: {error}", "Give what is missing"
        ) from None


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text: '...'"}


def _value(kind: Any, value: Any, place: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{place} is {value!r}", f"Set its parts, such as {place}.{fields(kind)[0].name}")
        return build(typing.cast(type, kind), value, f"{place}.")
    if isinstance(kind, types.GenericAlias) and isinstance(value, str | list | tuple):
        return (value,) if isinstance(value, str) else tuple(map(str, value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{place} is {value!r}", f"Give it {_NAMES[kind]}")
    return value
