"""Turns tokens into events: incremental decoding, the output parser of a dialect, and stop strings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from freedive.text.dialects.dialect import Dialect, Event, Text
from freedive.text.dialects.parser import Parser


class TokenDecoder(Protocol):
    """Decodes one answer incrementally and returns only text that no later token can change."""

    def push(self, token_id: int, /) -> str: ...


class Tokenizer(Protocol):
    """The part of a tokenizer that the engine uses: end tokens and incremental decoding."""

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
    """Turns the tokens of one answer into events, up to the first stop string in the text (the stop string excluded).

    It searches stop strings only in what the ``parser`` returns as text, not in thoughts, tool calls or their markers;
    without a ``parser`` all output is text. It delays only text that may be the beginning of a stop string.
    :attr:`stop_string` is the stop string that was found. A character that the last token leaves incomplete is dropped.
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
        """Whether the newest token is inside a thought."""
        return self._parser.is_thinking

    def push(self, token_id: int) -> list[Event]:
        """Returns the events that ``token_id`` completes; sets :attr:`stopped` when it completes a stop string."""
        return self._cut(self._parser.read(self._decoder.push(token_id), ends=False))

    def close(self) -> list[Event]:
        """Returns the remaining events after the last token."""
        if self.stopped:
            return []
        is_call_cut_off = self._parser.is_calling  # the parser returns it as text, in which stop strings do not apply
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
            else:  # a stop string does not continue after a tool call
                shown += [*_text(self._finder.flush()), event]
            if self.stopped:
                break
        return shown


def _text(text: str) -> list[Text]:
    return [Text(text)] if text else []


class StopFinder:
    """Finds the stop string that ends first in a growing text; if several end at one character, the longest of them."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.found: str | None = None
        self._automaton = automaton(stop)
        self._state = 0
        self._pending = ""

    def push(self, text: str) -> str:
        """Appends ``text`` and returns the text that is certainly not part of a stop string.

        If a stop string ends in ``text``, sets :attr:`found` and returns only the text before it.
        """
        step, state = self._automaton.step, self._state
        for end, char in enumerate(text, len(self._pending) + 1):
            state = step(state, char)
            if found := self._automaton.matches[state]:
                self.found = found
                return (self._pending + text)[: end - len(found)]
        self._state = state
        text = self._pending + text
        certain = len(text) - self._automaton.depths[state]
        self._pending = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """Returns the delayed text, which is no stop string because no text follows it."""
        text, self._pending, self._state = self._pending, "", 0
        return text


class Automaton:
    """Searches a text for many strings at once, in constant amortised time per character (Aho and Corasick 1975).

    A state is the longest suffix of the text that is a prefix of one of the strings; state 0 is the empty suffix.
    ``depths`` is the length of each state. ``matches`` is the longest string that each state ends with, or None.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.depths = [0]
        self.matches: list[str | None] = [None]
        self._next: dict[tuple[int, str], int] = {}
        self._suffix_links = [0]  # for each state: its longest proper suffix that is also a state
        for string in strings:
            self._insert(string)
        self._link()

    def step(self, state: int, char: str) -> int:
        """Returns the state that follows ``state`` when the text continues with ``char``."""
        while (following := self._next.get((state, char))) is None:
            if state == 0:
                return 0
            state = self._suffix_links[state]
        return following

    def _insert(self, string: str) -> None:
        state = 0
        for depth, char in enumerate(string, 1):
            following = self._next.setdefault((state, char), len(self.depths))
            if following == len(self.depths):
                self.depths.append(depth)
                self.matches.append(None)
                self._suffix_links.append(0)
            state = following
        self.matches[state] = string

    def _link(self) -> None:
        """Sets the suffix links breadth first, because the link of a state is shorter than the state."""
        children: dict[int, list[tuple[str, int]]] = {}
        for (state, char), following in self._next.items():
            children.setdefault(state, []).append((char, following))
        waiting = deque(following for _, following in children.get(0, ()))
        while waiting:
            state = waiting.popleft()
            self.matches[state] = self.matches[state] or self.matches[self._suffix_links[state]]
            for char, following in children.get(state, ()):
                self._suffix_links[following] = self.step(self._suffix_links[state], char)
                waiting.append(following)


automaton = lru_cache(16)(Automaton)
"""Returns an automaton from a cache; an automaton is immutable, so the answers to one request can share it."""
