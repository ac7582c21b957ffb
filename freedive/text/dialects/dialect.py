"""Dialects: how a model marks its thoughts and tool calls. A dialect is data; one parser handles all dialects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schemas of parameters by function and parameter name."""


@dataclass(frozen=True)
class Text:
    """A part of the answer itself."""

    text: str


@dataclass(frozen=True)
class Thought:
    """A part of the reasoning that precedes the answer."""

    text: str


@dataclass(frozen=True)
class Call:
    """A complete tool call. ``arguments`` is the text of a JSON object; ``id`` is the model's, None if it has none."""

    name: str
    arguments: str
    id: str | None = None


Event = Text | Thought | Call

Codec = Callable[[str, Schemas], list[Call]]
"""A function that reads the text between a call's markers. Raises ValueError for text in another syntax."""


class Mark(Enum):
    """The meaning of a marker. SECTION marks surround calls, and ANSWER marks surround text; the parser drops both."""

    THINK = auto()
    END_THINK = auto()
    ANSWER = auto()
    END_ANSWER = auto()
    SECTION = auto()
    END_SECTION = auto()
    CALL = auto()
    END_CALL = auto()
    HEADER = auto()
    """The start of a message's header (harmony)."""
    MESSAGE = auto()
    """The end of a header."""
    END = auto()
    """The end of a message."""


def marks(**markers: str | tuple[str, ...]) -> dict[str, Mark]:
    """Returns a mapping from marker to mark for arguments such as END_CALL="</x>", CALL=("<x>", "<y>")."""
    pairs = [(name, [text] if isinstance(text, str) else text) for name, text in markers.items()]
    return {text: Mark[name] for name, texts in pairs for text in texts}


_CALL_MARKS = frozenset({Mark.SECTION, Mark.END_SECTION, Mark.CALL, Mark.END_CALL})


@dataclass(frozen=True)
class Writing:
    """The syntax of calls for a grammar, which the codecs can read.

    ``call`` is a template with $name, perhaps $id or $number, and either $arguments (a JSON object) or $parameters.
    Each parameter is written as the template ``parameter`` with $key, $value and, in some dialects, $string (true or
    false). A newline in ``call`` matches any white space or none. ``before`` and ``after`` surround all calls;
    ``between`` separates two calls, and is None if an answer has at most one call.
    """

    call: str
    before: str = ""
    between: str | None = ""
    after: str = ""
    parameter: str = ""


@dataclass(frozen=True)
class Messages:
    """The markers in a dialect of messages with headers: start and end of a thought, and start of the answer."""

    thought: tuple[str, str]
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Dialect:
    """The meaning of each marker by its text, and the syntax of calls. Without markers, all output is text."""

    marks: Mapping[str, Mark]
    codecs: tuple[Codec, ...] = ()
    """Codecs, tried in order for every call."""
    separators: tuple[str, ...] = ()
    """Special tokens inside calls and headers, which the decoder must keep for the codecs."""
    header: re.Pattern[str] | None = None
    """A header and the marker at its end; the groups ``thought`` and ``call`` match in those of thoughts and calls."""
    bare: bool = False
    """An answer that begins with a bracket is a call, if it names a tool of the request."""
    must_close: bool = False
    """A call that is open at the end of the output is text, because it may lack arguments."""
    ends_thought: bool = False
    """Call markers are special tokens, and also end an open thought."""
    writing: Writing | None = None
    """The syntax of calls for a grammar, None if it is not known."""
    messages: Messages | None = None
    constrained_text: bool = False
    """A constraint enforces the format of the text, so the answer has no markers after its start."""
    constrained_calls: bool = False
    """A constraint makes all calls complete, so a marker inside a call is part of its text."""

    def __or__(self, other: Dialect) -> Dialect:
        """Returns a dialect with the calls of ``self`` and the markers of both."""
        return replace(self, marks={**other.marks, **self.marks})

    def without_calls(self) -> Dialect:
        """Returns the dialect for a conversation without tools, in which the syntax of calls is text."""
        marks = {marker: mark for marker, mark in self.marks.items() if mark not in _CALL_MARKS}
        return replace(self, marks=marks, codecs=(), bare=False, writing=None)

    def markers(self, *wanted: Mark) -> list[str]:
        """Returns the markers with a meaning in ``wanted``."""
        return [marker for marker, mark in self.marks.items() if mark in wanted]

    def is_visible(self, token: str) -> bool:
        """Whether the parser needs the special token ``token``, which decoding drops otherwise."""
        return any(token in marker for marker in (*self.marks, *self.separators))


class Mode(Enum):
    """What the current part of the output is."""

    TEXT = auto()
    THOUGHT = auto()
    CALL = auto()
    HEADER = auto()


@dataclass(frozen=True)
class State:
    """The state of the parser at the start of an output.

    ``after_marker``: leading white space belongs to a marker, and is dropped. ``in_answer``: an ANSWER marker is open.
    """

    mode: Mode = Mode.TEXT
    after_marker: bool = False
    in_answer: bool = False


_OPENED = {
    Mark.THINK: State(Mode.THOUGHT, after_marker=True),
    Mark.END_THINK: State(Mode.TEXT, after_marker=True),
    Mark.ANSWER: State(Mode.TEXT, after_marker=True, in_answer=True),
}


def initial_state(dialect: Dialect, prompt: str) -> State:
    """Returns the state at the end of a rendered prompt; many templates end with an open or an empty thought."""
    tail = prompt.rstrip()
    if dialect.header and _last(dialect, Mark.HEADER, tail) > _last(dialect, Mark.MESSAGE, tail):
        return State(Mode.HEADER)
    for marker, mark in dialect.marks.items():
        if mark in _OPENED and tail.endswith(marker):
            return _OPENED[mark]
    return State()


def _last(dialect: Dialect, mark: Mark, text: str) -> int:
    return max(text.rfind(marker) for marker, meaning in dialect.marks.items() if meaning is mark)
