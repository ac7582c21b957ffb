"""Makes the flags of a command from the fields of dataclasses."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from freedive.errors import UserError

Values = dict[str, Any]
"""Values of the fields that were given, by name; the dataclass has the defaults of the others."""

REFERENCE = "A name (see `freedive list`), hf:owner/name[/file], modelscope:owner/name[/file] or a path."

Reference = Annotated[str, typer.Argument(metavar="MODEL", help=REFERENCE)]
"""The model argument of a command."""

METAVARS: dict[Any, str] = {Mapping: "TOKEN=BIAS", tuple: "TEXT", frozenset: "TOKEN"}
"""The metavariable of a flag with several values, by the type of the field; such a flag may be repeated."""


def settings(*, leave_out: frozenset[str] = frozenset(), **kinds: type) -> Callable[..., Callable[..., None]]:
    """Gives a command the fields of dataclasses as flags; for each keyword in ``kinds`` it receives :data:`Values`."""
    flags = {
        keyword: [_flag(kind, field) for field in fields(kind) if field.name not in leave_out]
        for keyword, kind in kinds.items()
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_flags(**values: Any) -> None:
            for keyword, group in flags.items():
                given = {flag.name: values.pop(flag.name) for flag in group}
                values[keyword] = {
                    name: _value(field_type(kinds[keyword], name), value)
                    for name, value in given.items()
                    if value not in (None, [])
                }
            command(**values)

        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name not in kinds]
        parameters = own + [flag for group in flags.values() for flag in group]
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {item.name: item.annotation for item in parameters}
        return with_flags

    return decorate


def field_type(kind: type, name: str) -> Any:
    """Returns the type of a field without its "or None"."""
    hint = typing.get_type_hints(kind)[name]
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _flag(kind: type, field: Field[Any]) -> inspect.Parameter:
    hint = field_type(kind, field.name)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    option = typer.Option(
        f"--{field.name.replace('_', '-')}",
        help=_help(kind, field),
        show_default=False,
        metavar="on|off" if hint is bool and field.default is True else METAVARS.get(origin),
    )
    if hint is bool and field.default is True:
        hint = str  # --name off: only a field that is False by default becomes a flag without a value
    plain: Any = hint if origin is None else list[str] if origin is Mapping else list[parts[0]]  # type: ignore[valid-type]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, option]
    )


def _value(hint: Any, given: Any) -> Any:
    """Converts a value of the command line to the type of its field."""
    if typing.get_origin(hint) is Mapping:
        return dict(_pair(text) for text in given)
    return given if hint is bool else (typing.get_origin(hint) or hint)(given)


def _pair(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise UserError(f"{text!r} is not TOKEN=BIAS", "Write a token's number and a bias, such as 42=-5") from None


def _help(kind: type, field: Field[Any]) -> str:
    text: str = field.metadata.get("help") or _docs(kind)[field.name]
    if field.default is True:
        return f"{text} (default on)"
    shown = isinstance(field.default, int | float | str) and not isinstance(field.default, bool)
    return f"{text} (default {field.default})" if shown else text


@functools.cache
def _docs(kind: type) -> dict[str, str]:
    """Returns the docstrings below the fields of a class, which Python does not keep."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(kind)).body[0]).body
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
