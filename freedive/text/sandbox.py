"""A jinja2 environment for chat templates: what transformers offers them, within limits.

A template is code that came with a download. jinja2's sandbox keeps it from Python's internals; this module also keeps
it from running for ever and from filling the memory: loops and macro calls are counted, and what can make a value grow
is measured before it is done. A template that goes too far ends in a SecurityError.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, nodes, pass_environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 250_000
"""Loop iterations and macro calls of one rendering."""

MAX_SIZE = 1 << 24
"""Characters and items of any value that a template makes, its result included."""

_MAX_INT_BITS = 4096
_ITEM_SIZE = 16  # what a number, or one level of nesting, counts as

# Filters and methods that pad or repeat as far as their arguments say are not offered: no known template needs them.
_UNBOUNDED_FILTERS = frozenset(
    {"batch", "center", "filesizeformat", "format", "pprint", "random", "round", "slice", "sum", "urlize", "wordwrap"}
)
_GLOBALS = ("range", "namespace", "cycler", "joiner")
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "translate", "format_map"})
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)|\{[^}]*(\d{4}|\{)")


class Refused(TemplateError):
    """The template itself called raise_exception."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates as transformers does.

    ``steps`` counts one rendering: set it to 0 before each, and render one at a time.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=_measured
        )
        own = {"join": _join, "replace": _replace, "indent": _indent, "tojson": _to_json}
        offered = {name: filter for name, filter in self.filters.items() if name not in _UNBOUNDED_FILTERS}
        self.filters = {name: _guarded(filter) for name, filter in (offered | own).items()}
        self.globals = {name: self.globals[name] for name in _GLOBALS} | {
            "dict": _make_dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.steps = 0

    def step(self) -> bool:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")
        return True

    def concat(self, parts: Iterable[str]) -> str:  # jinja2 calls it for every block
        return self.join_text(*parts)

    def join_text(self, *values: Any) -> str:
        measure(*values)
        return "".join(map(str, values))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and attr not in _PADDING_METHODS

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            args = _check_method(text, method.__name__, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree


class Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; here it is only a scope of its own."""

    tags = {"generation"}  # noqa: RUF012  # the name and type that jinja2 prescribes

    def parse(self, parser: Parser) -> nodes.Scope:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Instrument(NodeTransformer):
    """Counts every round of a loop and every macro call, and sends ``a ~ b`` through :meth:`Sandbox.join_text`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        if node.test is None:
            node.body.insert(0, nodes.ExprStmt(_environment_call("step", [], node.lineno), lineno=node.lineno))
        else:
            node.test = nodes.And(_environment_call("step", [], node.lineno), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_environment_call("step", [], node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _environment_call("join_text", node.nodes, node.lineno)


def _environment_call(method: str, args: list[nodes.Expr], lineno: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), args, [], None, None, lineno=lineno)


def measure(*values: Any) -> int:
    """How long values are as text, about, without making the text (lists can hold one another many times over)."""
    size, stack = 0, [*values]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend(value.items())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
        size += len(value) if isinstance(value, str) else _ITEM_SIZE
        _check_size(size)
    return size


def _guarded(filter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter)
    def call(*args: Any, **kwargs: Any) -> Any:
        measure(*args)
        return filter(*args, **kwargs)

    return call


def _measured(value: Any) -> Any:
    measure(value)
    return value


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a value of more than {MAX_SIZE} characters")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    sizes = [len(value) for value in (left, right) if isinstance(value, (str, list, tuple))]
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if operator == "+":
        _check_size(sum(sizes))
    elif operator == "%" and isinstance(left, str):
        _check_format(left, right)
    elif operator == "*" and sizes and numbers:
        _check_size(sizes[0] * numbers[0])
    elif operator in ("*", "**") and len(numbers) == 2:
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_INT_BITS:
            raise SecurityError("it makes a number that is too large")


def _check_format(text: str, values: Any) -> None:
    if _WIDE_FIELD.search(text):
        raise SecurityError("it formats text to a very large or computed width")
    _check_size(len(text) + (text.count("{") + text.count("%")) * measure(values))


def _check_method(text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Measure what ``text.name(*args)`` would return. The arguments are returned, as one may be an iterator."""
    if name == "join":
        items: list[Any] = list(*args)
        _check_size(measure(items) + len(text) * len(items))
        return (items,)
    if name == "replace":
        old, new = map(str, args[:2])
        _check_size(len(text) + text.count(old) * len(new))
    elif name == "format":
        _check_format(text, [args, {key: value for key, value in kwargs.items() if not key.startswith("_")}])
    return args


@pass_environment
def _join(environment: Environment, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    items = [str(_measured(value)) for value in values]
    return str(d).join(*_check_method(str(d), "join", (items,), {}))


def _replace(text: Any, old: Any, new: Any, count: int = -1) -> str:
    _check_method(str(text), "replace", (old, new), {})
    return str(text).replace(str(old), str(new), count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, int) else len(width)
    _check_size(len(text) + text.count("\n") * margin + margin)
    return do_indent(text, width, first, blank)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter, as transformers: no HTML escapes, and non-ASCII text as it is."""
    _check_size(measure(value) * (1 + (indent or 0)))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
