"""A jinja2 environment for chat templates, compatible with transformers, with limits on work and memory.

A template is untrusted code. jinja2's sandbox protects Python's internals. This module also limits running time and
memory: every operation that takes work or creates a value is counted before it is done, against one budget for the
whole rendering. A template that exceeds the budget raises SecurityError.
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, nodes, pass_environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent, do_int, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from freedive.text.render_budget import ITEM, MAX_INT_BITS, STEP, RenderBudget, check_size

MAX_SOURCE = 1 << 18
"""The most characters of a template, since compiling takes up to 2 KB for each; the longest known one has 30,000."""

_MAX_DIGITS = 1233
"""The most digits of a text that becomes a number: those of MAX_INT_BITS."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _names(
    "abs attr capitalize count d default dictsort e escape first float forceescape groupby indent int items join "
    "last length list lower map max min reject rejectattr replace reverse safe select selectattr sort string "
    "title tojson trim truncate unique upper urlencode wordcount xmlattr"
)
"""The available filters. Filters that pad or repeat text are left out; no known template needs them."""
_CHEAP = _names(
    "abs attr count d default first float items last length safe boolean callable defined divisibleby even false "
    "filter float integer iterable mapping none number odd sameas sequence string test true undefined"
)
"""Filters and tests that take constant time."""
_OF_EACH = _names("map reject rejectattr select selectattr")
"""Filters that do for each item what is counted by itself, or look up an attribute."""
_WEIGHTS = {
    **dict.fromkeys(("max", "min", "string"), 4),
    **dict.fromkeys(("e", "escape", "forceescape", "tojson"), 8),
    "indent": 16,
    **dict.fromkeys(("dictsort", "groupby", "sort", "title", "unique", "urlencode", "wordcount"), 64),
}
"""The work per character of expensive filters, relative to that of other filters."""

_GLOBALS = ("range", "namespace", "cycler", "joiner")
_TEXT_METHODS = _names(
    "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_SLOW_SEARCHES = _names("lstrip rfind rindex rpartition rsplit rstrip strip trim")
"""Methods and filters that can compare each character with each one of what they search for."""
_CONTAINER_METHODS = _names("copy count get index items keys values")
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""The characters after which ``str.splitlines`` begins a line."""
_SCOPES = ("_block_vars", "_loop_vars")
"""Arguments that jinja2 adds to each call in a block or loop, for functions that read its variables, and removes."""
_WIDE = re.compile(r"\d{4}|\{")
"""What a field of ``str.format`` may not have after its name: a width or a precision that is large or computed."""
_WIDE_PERCENT = re.compile(r"%[-#0 +\d.]*(\d{4}|\*)")
_WIDE_AFTER_KEY = re.compile(r"\)[-#0 +\d.]*(\d{4}|\*)")
"""The same in fields of ``%``, the second for texts with fields that have keys in parentheses."""


class Refused(TemplateError):
    """The template called raise_exception."""


class _Namespace(Namespace):
    """A namespace that is never written: what it holds is not measured, and may hold it many times."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """A jinja2 environment with the settings, filters and functions of transformers.

    ``budget`` counts one rendering: call ``budget.begin`` before each, and render one template at a time.
    """

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self) -> None:
        self.budget = RenderBudget()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=self.budget.touch
        )
        own = {
            "join": _join,
            "replace": _replace,
            "indent": _indent,
            "tojson": _to_json,
            "int": _int,
            "list": self.listed,
        }
        offered = {name: filter for name, filter in self.filters.items() if name in _FILTERS}
        self.filters = {name: self._counted(name, filter) for name, filter in (offered | own).items()}
        self.tests = {name: self._counted(name, test) for name, test in self.tests.items()}
        self.globals = {name: self.globals[name] for name in _GLOBALS} | {
            "dict": self._make_dict,
            "namespace": lambda *args, **kwargs: _Namespace(self._make_dict(*args), **kwargs),
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
        }

    def _counted(self, name: str, function: Any) -> Callable[..., Any]:
        """Returns a filter or test that counts its work and its result; iterators are run to their ends at once."""
        budget, weight = self.budget, _WEIGHTS.get(name, 1)
        num_own = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context, which jinja2 passes

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if name in _CHEAP:
                budget.spend(ITEM)
            else:
                values = [self.listed(arg) if isinstance(arg, Iterator) else arg for arg in args[num_own:]]
                if name in _OF_EACH:
                    values[:1] = [self.listed(values[0] or ())]  # none of nothing, as in jinja2
                    paths = sum(len(arg) for arg in (*values[1:], *kwargs.values()) if isinstance(arg, str))
                    budget.spend(ITEM * (1 + len(values[0])) * (1 + paths // 8))
                else:
                    self._spend_on(name, values[0], [*values[1:], *kwargs.values()], weight)
                args = (*args[:num_own], *values)
            result = function(*args, **kwargs)
            return iter(self.listed(result)) if isinstance(result, Iterator) else budget.make(result)

        return call

    def _spend_on(self, name: str, value: Any, args: Sequence[Any], weight: int = 1) -> None:
        """Counts an operation on ``value`` with ``args``; searching a text can take the product of both lengths."""
        searched = sum(map(self.budget.measure, args))
        at_once = 8 if name in _SLOW_SEARCHES else 8 * ITEM
        self.budget.spend(weight * self.budget.measure(value) * (1 + searched // at_once) + searched)

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """Returns the items of ``values``, which may be a long text or an iterator."""
        return self.budget.listed(values)

    def step(self) -> bool:
        self.budget.spend(STEP)
        return True

    def made(self, value: Any) -> Any:
        return self.budget.make(value)

    def touched(self, value: Any) -> Any:
        return self.budget.touch(value)

    def concat(self, parts: Iterable[str]) -> str:  # jinja2 calls this for every block
        return self.join_text(*parts)

    def join_text(self, *values: Any) -> str:
        self.budget.spend(ITEM + check_size(sum(map(self.budget.measure, values))))
        text: str = self.budget.make("".join(map(str, values)))
        return text

    def _make_dict(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        pairs = [self.listed(arg.items() if isinstance(arg, Mapping) else arg) for arg in args]
        num_keys = sum(map(len, pairs))
        self.budget.spend(num_keys * num_keys // ITEM)  # keys with equal hashes take quadratic time
        made: dict[Any, Any] = self.budget.make(dict(*pairs, **kwargs))
        return made

    def _strftime_now(self, format: str) -> str:
        self.budget.spend(256 * len(format))
        return datetime.now().strftime(format)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        if isinstance(obj, (list, tuple, Mapping)):
            return attr in _CONTAINER_METHODS
        if isinstance(obj, (int, float, bytes)) or attr == "changed":
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._check_operation(operator, left, right)
        return self.budget.make(super().call_binop(context, operator, left, right))

    def _check_operation(self, operator: str, left: Any, right: Any) -> None:
        sizes = [self.budget.measure(value) for value in (left, right) if isinstance(value, (str, list, tuple))]
        numbers = [value for value in (left, right) if isinstance(value, int)]
        if operator == "+":
            check_size(sum(sizes))
            self.budget.spend(sum(len(value) for value in (left, right) if isinstance(value, (str, list, tuple))))
        elif operator == "-" and (isinstance(left, Set) or isinstance(right, Set)):
            raise SecurityError("it subtracts what is no number")
        elif operator == "%" and isinstance(left, str):
            patterns = [_WIDE_PERCENT, _WIDE_AFTER_KEY] if "%(" in left else [_WIDE_PERCENT]
            self._check_format(left, right, any(pattern.search(left) for pattern in patterns))
        elif operator == "*" and sizes and numbers:
            self.budget.spend(check_size(sizes[0] * max(0, numbers[0])))
        elif operator in ("*", "**") and len(numbers) == 2:
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_INT_BITS:
                raise SecurityError("it makes a number that is too large")

    def _check_format(self, text: str, values: Any, is_wide: bool) -> None:
        if is_wide:
            raise SecurityError("it formats text to a very large or computed width")
        num_fields = text.count("{") + text.count("%")
        self.budget.spend(4 * check_size(len(text) + num_fields * self.budget.measure(values)))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        text = getattr(method, "__self__", None)
        __self.budget.spend(ITEM * (1 + len(args) + len(kwargs)))
        __self.budget.take(ITEM * (len(args) + len(kwargs)))
        if not isinstance(text, (str, list, tuple, dict)):
            return super().call(__context, __obj, *args, **kwargs)
        if isinstance(text, str):
            given = {name: value for name, value in kwargs.items() if name not in _SCOPES}
            args = __self._check_method(text, method.__name__, args, given)
        elif method.__name__ in ("count", "index"):
            __self.budget.touch(text)
        return __self.budget.make(super().call(__context, __obj, *args, **kwargs))

    def _check_method(self, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Counts the call ``text.name(*args)``, and returns the arguments with iterators as lists."""
        if name == "join":
            items = self.listed(*args)
            self.budget.spend(check_size(self.budget.measure(items) + len(text) * len(items)))
            return (items,)
        if name == "format":
            is_wide = any(spec and _WIDE.search(spec) for _, _, spec, _ in string.Formatter().parse(text))
            self._check_format(text, [args, kwargs], is_wide)
            return args
        self._spend_on(name, text, [*args, *kwargs.values()])
        if name == "replace":
            old, new = map(str, args[:2])
            check_size(len(text) + text.count(old) * len(new))
        elif name in ("split", "rsplit"):
            mark = args[0] if args else kwargs.get("sep")
            check_size(ITEM * (text.count(mark) if isinstance(mark, str) else len(text) // 2))
        elif name == "splitlines":
            check_size(ITEM * len(text))
        return args

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it has more than {MAX_SOURCE} characters")
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree


class Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; in inference it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  # the name and type that jinja2 prescribes

    def parse(self, parser: Parser) -> nodes.Scope:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Instrument(NodeTransformer):
    """Adds calls that count work: loop iterations, macro calls, ``a ~ b``, comparisons, lists, dicts and slices,
    and bounds the arguments of ``f(*args)``.
    """

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

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _environment_call("touched", [node.expr], node.lineno)
        for operand in node.ops:
            operand.expr = _environment_call("touched", [operand.expr], node.lineno)
        return node

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Expr:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _environment_call("listed", [node.dyn_args], node.lineno)
        return node

    visit_Filter = visit_Test = visit_Call

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("made", [node], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("made", [node], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("made", [node], node.lineno) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("made", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node


def _environment_call(method: str, args: list[nodes.Expr], lineno: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), args, [], None, None, lineno=lineno)


@pass_environment
def _join(environment: Environment, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    assert isinstance(environment, Sandbox)
    items, mark = environment.listed(values), str(d)
    if attribute is not None:
        items = list(map(make_attrgetter(environment, attribute), items))
    environment.budget.spend(check_size(sum(map(environment.budget.measure, items)) + len(mark) * len(items)))
    return mark.join(map(str, items))


def _replace(text: Any, old: Any, new: Any, count: int = -1) -> str:
    whole, old, new = str(text), str(old), str(new)
    check_size(len(whole) + whole.count(old) * len(new))
    return whole.replace(old, new, count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, int) else len(width)
    num_lines = 1 + sum(map(text.count, _LINE_ENDS))
    check_size(len(text) + num_lines * max(margin, ITEM))
    return do_indent(text, width, first, blank)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise SecurityError("it makes a number that is too large")
    return do_int(value, default, base)


@pass_environment
def _to_json(
    environment: Environment,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encodes JSON as in transformers, without the HTML and non-ASCII escapes of jinja2's filter."""
    assert isinstance(environment, Sandbox)
    budget = environment.budget
    check_size(budget.measure(value))
    if sum(map(len, separators or ())) > ITEM or (len(indent) if isinstance(indent, str) else indent or 0) > ITEM:
        raise SecurityError("it indents or separates JSON by very long texts")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)
    pieces, size = [], 0
    for piece in encoder.iterencode(value):  # with the margins of all levels around it
        budget.spend(len(piece))
        size = check_size(size + len(piece))
        pieces.append(piece)
    return "".join(pieces)


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)
