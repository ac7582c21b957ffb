"""Turns tokens into events: incremental decoding, the output parser of a dialect, and stop strings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from freedive.text.dialects.dialect import Dialect, Event, Text
from freedive.text.dialects.parser import Parser


class TokenDecoder(Protocol):
    """Incremental decoder of one answer: returns only text that no later token can change."""

    def push(self, token_id: int, /) -> str: ...


class Tokenizer(Protocol):
    """What the engine needs to know about text."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    def stream(self, *, continues: bool = False, is_visible: Callable[[str], bool] | None = None) -> TokenDecoder: ...


class OutputParser(Protocol):
    """Separates the thoughts and tool calls of one answer from its text."""

    @property
    def is_thinking(self) -> bool: ...

    @property
    def is_calling(self) -> bool: ...

    def read(self, text: str, *, ends: bool) -> list[Event]: ...


class Detokenizer:
    """Events of one answer, up to the first stop string that its text completes (that one excluded).

    Stop strings are looked for in what the ``parser`` calls text, so not in thoughts, in calls or in their markers;
    without a reader all output is text. Only text that may still turn out to be the beginning of a stop string is held
    back. :attr:`stop_string` is the one that was found. A character that the last token leaves incomplete is left out.
    """

    def __init__(self, decoder: TokenDecoder, stop: tuple[str, ...] = (), parser: OutputParser | None = None) -> None:
        self._decoder = decoder
        self._parser = parser or Parser(Dialect({}))
        self._finder = StopFinder(stop) if stop else None

    @property
    def stop_string(self) -> str | None:
        return self._finder.found if self._finder else None

    @property
    def stopped(self) -> bool:
        return self.stop_string is not None

    @property
    def is_thinking(self) -> bool:
        """Whether the output is in the middle of a thought."""
        return self._parser.is_thinking

    def push(self, token_id: int) -> list[Event]:
        """The events that ``token_id`` makes certain; sets :attr:`stopped` when it completes a stop string."""
        return self._cut(self._parser.read(self._decoder.push(token_id), ends=False))

    def close(self) -> list[Event]:
        """The remaining events, when no more tokens come."""
        if self.stopped:
            return []
        is_call_cut_off = self._parser.is_calling  # which is text then, but not the answer's
        events = self._parser.read("", ends=True)
        if is_call_cut_off and self._finder:
            return [*_text(self._finder.flush()), *events]
        events = self._cut(events)
        if self._finder and not self.stopped:
            events += _text(self._finder.flush())
        return events

    def _cut(self, events: list[Event]) -> list[Event]:
        if not self._finder:
            return events
        shown: list[Event] = []
        for event in events:
            if isinstance(event, Text):
                shown += _text(self._finder.push(event.text))
            else:  # a stop string does not reach over a call
                shown += [*_text(self._finder.flush()), event]
            if self.stopped:
                break
        return shown


def _text(text: str) -> list[Text]:
    return [Text(text)] if text else []


class StopFinder:
    """Finds the first of the strings ``stop`` to be completed in a growing text; of those, the longest."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.found: str | None = None
        self._automaton = automaton(stop)
        self._state = 0
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certainly not part of a stop string, up to the one that is :attr:`found`."""
        step, state = self._automaton.step, self._state
        for end, char in enumerate(text, len(self._held) + 1):
            state = step(state, char)
            if found := self._automaton.matches[state]:
                self.found = found
                return (self._held + text)[: end - len(found)]
        self._state = state
        text = self._held + text
        certain = len(text) - self._automaton.depths[state]
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What is held back, which no text follows."""
        text, self._held, self._state = self._held, "", 0
        return text


class Automaton:
    """Reads a text character by character in constant time, however many strings it looks for (Aho and Corasick 1975).

    A state is the longest end of the text that begins one of the strings; 0 is the empty one. Of each state, ``depths``
    has its length, and ``matches`` the longest string that it ends with, if it does.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.depths = [0]
        self.matches: list[str | None] = [None]
        self._next: dict[tuple[int, str], int] = {}
        self._shorter = [0]  # the longest proper end of a state that is a state, too
        for string in strings:
            self._insert(string)
        self._link()

    def step(self, state: int, char: str) -> int:
        """The state after ``char`` has followed ``state``."""
        while (following := self._next.get((state, char))) is None:
            if state == 0:
                return 0
            state = self._shorter[state]
        return following

    def _insert(self, string: str) -> None:
        state = 0
        for depth, char in enumerate(string, 1):
            following = self._next.setdefault((state, char), len(self.depths))
            if following == len(self.depths):
                self.depths.append(depth)
                self.matches.append(None)
                self._shorter.append(0)
            state = following
        self.matches[state] = string

    def _link(self) -> None:
        """Breadth first, since a state's link is shorter than itself."""
        children: dict[int, list[tuple[str, int]]] = {}
        for (state, char), following in self._next.items():
            children.setdefault(state, []).append((char, following))
        waiting = deque(following for _, following in children.get(0, ()))
        while waiting:
            state = waiting.popleft()
            self.matches[state] = self.matches[state] or self.matches[self._shorter[state]]
            for char, following in children.get(state, ()):
                self._shorter[following] = self.step(self._shorter[state], char)
                waiting.append(following)


automaton = lru_cache(16)(Automaton)
"""Automata are immutable once made, and answers to one request share theirs."""
