"""Incremental parser that splits a model's output into text, thoughts and tool calls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freedive.text.dialects.codecs import parameter_schemas, read_calls
from freedive.text.dialects.dialect import Call, Dialect, Event, Mark, Mode, State, Text, Thought

_ACTIVE_MARKS = {
    Mode.TEXT: {Mark.SECTION, Mark.END_SECTION, Mark.CALL, Mark.HEADER, Mark.END},
    Mode.THOUGHT: {Mark.END_THINK, Mark.HEADER, Mark.END},
    Mode.CALL: {Mark.CALL, Mark.END_CALL, Mark.END_SECTION, Mark.HEADER, Mark.END},
    Mode.HEADER: {Mark.MESSAGE},
}
"""The marks that are active in each mode; markers of other marks are text."""
_ACTIVE_AT_START = {Mark.THINK, Mark.END_THINK, Mark.ANSWER}
"""Marks that are active only before the answer has begun: the answer itself may contain "<think>"."""
_LEADS_TO = {Mark.THINK: Mode.THOUGHT, Mark.CALL: Mode.CALL, Mark.HEADER: Mode.HEADER}


def active_markers(dialect: Dialect, mode: Mode, *, begun: bool, in_answer: bool = False) -> list[str]:
    """Returns the active markers in ``mode``, before or after the answer has ``begun``."""
    marks = set(_ACTIVE_MARKS[mode])
    if mode is Mode.TEXT and begun and dialect.constrained_text:
        return []
    if mode is Mode.TEXT and not begun:
        marks |= _ACTIVE_AT_START
    if mode is Mode.TEXT and in_answer:
        marks.add(Mark.END_ANSWER)
    if mode is Mode.THOUGHT and dialect.ends_thought:
        marks |= {Mark.SECTION, Mark.CALL}
    return dialect.markers(*marks)


class Parser:
    """Parses one output that arrives in chunks. The events do not depend on the chunks, except for cuts in texts.

    The parser buffers only a possible marker, and white space before it, which belongs to the marker. A call is
    returned when it is complete. A call that no codec can read is text, with its markers; no method raises an error.
    """

    def __init__(
        self, dialect: Dialect, state: State | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        state = state or State()
        self._dialect = dialect
        self._schemas = parameter_schemas(tools or ())
        self._bare = dialect.bare and bool(tools)
        self._mode = state.mode
        self._after_marker = state.after_marker
        self._in_answer = state.in_answer
        self._begun = False  # whether the answer has begun
        self._opening = ""  # white space and marker before a call or header
        self._inside: list[str] = []  # text of a call or header
        self._held = ""  # a possible start of a marker
        self._space: list[str] = []  # white space, possibly before a marker
        self._events: list[Event] = []
        self._scans: dict[tuple[Mode, bool, bool], _Scan] = {}

    def feed(self, text: str) -> list[Event]:
        """Adds ``text`` and returns the events that it completes."""
        text, start = self._held + text, 0
        while found := self._scan().marker.search(text, start):
            self._take(text[start : found.start()])
            start = found.start()
            if found[0] in self._scan().markers:  # false if the text before it has begun the answer
                start = found.end()
                self._mark(found[0])
        certain = self._scan().certain(text, start)
        self._held = text[certain:]
        self._take(text[start:certain])
        return self._taken()

    @property
    def mode(self) -> Mode:
        """The mode at the current end of the output."""
        return self._mode

    @property
    def is_thinking(self) -> bool:
        """Whether the output is inside a thought or a header, before the answer."""
        return self._mode in (Mode.THOUGHT, Mode.HEADER)

    @property
    def is_calling(self) -> bool:
        """Whether the output is inside a tool call."""
        return self._mode is Mode.CALL

    def read(self, text: str, *, ends: bool) -> list[Event]:
        """Adds ``text`` and returns the events that it completes, and all remaining events if the output ends."""
        return [*self.feed(text), *self.finish()] if ends else self.feed(text)

    def finish(self) -> list[Event]:
        """Returns the remaining events at the end of the output."""
        self._take(self._held)
        if self._mode is Mode.CALL and not self._dialect.must_close:
            self._end_call("")
        elif self._mode in (Mode.CALL, Mode.HEADER):
            self._mode = Mode.TEXT
            self._emit(self._opening + "".join(self._inside))
        elif not self._after_marker:
            self._emit("".join(self._space))
        return self._taken()

    def _scan(self) -> _Scan:
        """Returns the search for the markers that are active now."""
        key = (self._mode, self._begun, self._in_answer)
        if key not in self._scans:
            markers = active_markers(self._dialect, self._mode, begun=self._begun, in_answer=self._in_answer)
            self._scans[key] = _Scan.of(markers)
        return self._scans[key]

    def _take(self, text: str) -> None:
        """Adds ``text``, which has no markers, to the current part of the output."""
        if self._mode is Mode.TEXT and self._bare and not self._begun and text.lstrip()[:1] in ("{", "["):
            self._open(Mode.CALL, "")
        if self._mode in (Mode.CALL, Mode.HEADER):
            self._inside.append(text)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        """Emits text of the answer or of a thought, without white space at its ends that may belong to a marker."""
        if self._after_marker:
            text = text.lstrip()
        visible = text.rstrip() if self._dialect.marks else text
        if visible:
            self._emit("".join(self._space) + visible)
            self._space.clear()
            self._after_marker = False
        self._space.append(text[len(visible) :])
        if self._begun and self._mode is Mode.TEXT and not self._scan().markers:
            self._emit("".join(self._space))
            self._space.clear()

    def _emit(self, text: str) -> None:
        if not text:
            return
        if self._mode is Mode.THOUGHT:
            self._events.append(Thought(text))
        else:
            self._events.append(Text(text))
            self._begun = True

    def _mark(self, marker: str) -> None:
        mark = self._dialect.marks[marker]
        if self._mode is Mode.CALL and self._dialect.constrained_calls and not self._calls():
            self._inside.append(marker)
            return
        if self._mode is Mode.CALL and mark in (Mark.END_CALL, Mark.END):
            self._end_call(marker)
            return
        if self._mode is Mode.CALL:
            self._end_call("")
        if mark is Mark.MESSAGE:
            self._begin_message(marker)
        else:
            self._open(_LEADS_TO.get(mark, Mode.TEXT), marker)
        self._in_answer = mark is Mark.ANSWER or (self._in_answer and mark is not Mark.END_ANSWER)

    def _open(self, mode: Mode, marker: str) -> None:
        self._mode = mode
        self._opening = "".join(self._space) + marker
        self._space.clear()
        self._inside.clear()
        self._after_marker = True

    def _begin_message(self, marker: str) -> None:
        """Starts the message of a complete header, which names a tool to call, or the kind of the text."""
        header = self._opening.lstrip() + "".join(self._inside) + marker
        found = self._dialect.header and self._dialect.header.fullmatch(header)
        if found and found.groupdict().get("call"):
            self._mode = Mode.CALL
            self._inside.append(marker)
        elif found:
            self._open(Mode.THOUGHT if found["thought"] else Mode.TEXT, marker)
        else:
            self._mode = Mode.TEXT
            self._emit(header)

    def _end_call(self, closing: str) -> None:
        calls = self._calls()
        self._events += calls
        self._mode, self._after_marker = Mode.TEXT, bool(calls)
        if not calls:
            self._emit(self._opening + "".join(self._inside) + closing)

    def _calls(self) -> list[Call]:
        calls = read_calls(self._dialect.codecs, "".join(self._inside), self._schemas)
        named = not self._bare or self._opening.strip() or all(call.name in self._schemas for call in calls)
        return calls if named else []

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events


@dataclass(frozen=True)
class _Scan:
    """Finds ``markers``. ``begins`` matches their first characters; ``prefixes`` are all incomplete markers."""

    markers: frozenset[str]
    marker: re.Pattern[str]
    begins: re.Pattern[str]
    prefixes: frozenset[str]
    longest: int

    @classmethod
    def of(cls, markers: Sequence[str]) -> _Scan:
        firsts = sorted({marker[0] for marker in markers})
        prefixes = frozenset(marker[:size] for marker in markers for size in range(1, len(marker)))
        return cls(frozenset(markers), _any_of(markers), _any_of(firsts), prefixes, max(map(len, prefixes), default=0))

    def certain(self, text: str, start: int) -> int:
        """Returns the end of the part of ``text`` that cannot belong to an incomplete marker after ``start``."""
        for begin in self.begins.finditer(text, max(start, len(text) - self.longest)):
            if text[begin.start() :] in self.prefixes:
                return begin.start()
        return len(text)


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


@dataclass(frozen=True)
class Answer:
    """A complete output: text, thoughts and tool calls."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]


def joined(events: Iterable[Event]) -> Answer:
    """Joins ``events`` to an answer."""
    events = list(events)
    return Answer(
        "".join(event.text for event in events if isinstance(event, Text)),
        "".join(event.text for event in events if isinstance(event, Thought)),
        tuple(event for event in events if isinstance(event, Call)),
    )


def parse(
    dialect: Dialect, output: str, state: State | None = None, tools: Sequence[Mapping[str, Any]] | None = None
) -> Answer:
    """Parses a complete output."""
    return joined(Parser(dialect, state, tools).read(output, ends=True))
