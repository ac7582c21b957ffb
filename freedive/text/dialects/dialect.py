"""How a model marks its thoughts and tool calls: a dialect is data, and one parser runs them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]
"""Per function the JSON schemas of its parameters."""


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
    """A whole tool call. ``arguments`` is the text of a JSON object; ``id`` is the model's own, if it gave one."""

    name: str
    arguments: str
    id: str | None = None


Event = Text | Thought | Call

Codec = Callable[[str, Schemas], list[Call]]
"""Reads what stands between the marks of a call. Raises ValueError where that is not what the codec expects."""


class Mark(Enum):
    """What a marker means. A section holds calls, an answer wraps the text; the marks of both are only left out."""

    THINK = auto()
    END_THINK = auto()
    ANSWER = auto()
    END_ANSWER = auto()
    SECTION = auto()
    END_SECTION = auto()
    CALL = auto()
    END_CALL = auto()
    HEADER = auto()
    """Begins the header of a message (harmony), which says what the message is."""
    MESSAGE = auto()
    """Ends the header."""
    END = auto()
    """Ends the message."""


_CALL_MARKS = frozenset({Mark.SECTION, Mark.END_SECTION, Mark.CALL, Mark.END_CALL})


@dataclass(frozen=True)
class Writing:
    """How calls are written, for a grammar: what the codecs read, the other way round.

    ``call`` has places for a $name and for $arguments, the text of a JSON object, or for $parameters. Of these each
    is written as ``parameter`` with a $key, a $value and, if text and JSON look alike, $string, true or false. A line's
    end in ``call`` stands for any white space or none. ``before`` and ``after`` stand around all calls, ``between`` two
    of them; None where there is but one.
    """

    call: str
    before: str = ""
    between: str | None = ""
    after: str = ""
    parameter: str = ""


@dataclass(frozen=True)
class Messages:
    """Where headers tell messages apart: what begins and what ends a thought, and what begins the answer."""

    thought: tuple[str, str]
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Dialect:
    """Markers by their text, and how calls are written. Without markers everything is text."""

    marks: Mapping[str, Mark]
    codecs: tuple[Codec, ...] = ()
    """Tried in order on every call."""
    separators: tuple[str, ...] = ()
    """Special tokens inside calls and headers: not for the parser, but a decoder must keep them for the codecs."""
    header: re.Pattern[str] | None = None
    """A header from its marker on; the group ``channel`` is "analysis" for thoughts. Others are text."""
    bare: bool = False
    """A whole answer that begins with a bracket is a call, if it names a tool that was given."""
    must_close: bool = False
    """A call that the output leaves open may lack arguments, and is none."""
    ends_thought: bool = False
    """Call markers are special tokens, meant also where a thought was not closed."""
    writing: Writing | None = None
    """How to have calls written, where that is known."""
    messages: Messages | None = None
    constrained_text: bool = False
    """Once begun the answer has no more markers: a constraint enforces its format."""
    constrained_calls: bool = False
    """A constraint makes calls complete, so a marker inside a call is part of it."""

    def __or__(self, other: Dialect) -> Dialect:
        """Both: the calls of ``self``, and the markers of ``other`` as well."""
        return replace(self, marks={**other.marks, **self.marks})

    def without_calls(self) -> Dialect:
        """The same thoughts and answers for a conversation without tools, where what looks like a call is text."""
        marks = {marker: mark for marker, mark in self.marks.items() if mark not in _CALL_MARKS}
        return replace(self, marks=marks, codecs=(), bare=False, writing=None)

    def markers(self, *wanted: Mark) -> list[str]:
        """The markers that mean one of ``wanted``."""
        return [marker for marker, mark in self.marks.items() if mark in wanted]

    def is_visible(self, token: str) -> bool:
        """Whether the parser needs to see ``token``, also if it is a special token that is not shown otherwise."""
        return any(token in marker for marker in (*self.marks, *self.separators))


class Mode(Enum):
    """What the output is in the middle of."""

    TEXT = auto()
    THOUGHT = auto()
    CALL = auto()
    HEADER = auto()


@dataclass(frozen=True)
class State:
    """Where an output begins. ``after_marker``: white space that comes first belongs to the marker's layout.

    ``in_answer``: the markers that wrap an answer are already open.
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
    """The state that a rendered prompt leaves: many templates open the thoughts, or put an empty block of them."""
    tail = prompt.rstrip()
    if dialect.header and _last(dialect, Mark.HEADER, tail) > _last(dialect, Mark.MESSAGE, tail):
        return State(Mode.HEADER)
    for marker, mark in dialect.marks.items():
        if mark in _OPENED and tail.endswith(marker):
            return _OPENED[mark]
    return State()


def _last(dialect: Dialect, mark: Mark, text: str) -> int:
    return max(text.rfind(marker) for marker, meaning in dialect.marks.items() if meaning is mark)
