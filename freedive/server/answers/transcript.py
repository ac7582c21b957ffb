"""What has arrived of an answer, with its HTML, which is rendered once for all who read it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool

from freedive.json_object import Json
from freedive.server.answers.prompt import BREAK
from freedive.server.conversations.records import ToolCall
from freedive.server.page.rendering import LiveMarkdown
from freedive.text.dialects.parser import Answer


@dataclass(frozen=True)
class Position:
    """How many characters of thoughts, text and HTML of complete blocks, and how many calls a reader has."""

    thoughts: int = 0
    text: int = 0
    html: int = 0
    calls: int = 0


class Transcript:
    """The ``thoughts`` and the ``text`` of an answer so far. Belongs to one event loop; rendering runs in a thread.

    What readers see is the state after the last :meth:`render`: ``html`` of the blocks that cannot change any more, and
    ``tail``, the HTML of the last block.
    """

    def __init__(self, thoughts: str = "", text: str = "", calls: Sequence[ToolCall] = ()) -> None:
        self.thoughts, self.text, self.calls = thoughts, text, list(calls)
        self.html = self.tail = ""
        self._shown = Position()
        self._live = LiveMarkdown()
        self._rendering = asyncio.Lock()

    def add(self, part: Answer) -> None:
        """Adds what arrived; what follows a call is another paragraph."""
        last = self.calls[-1] if self.calls else None
        if part.reasoning and last and self.thoughts and last["thoughts_end"] == len(self.thoughts):
            self.thoughts += BREAK
        if part.content and last and self.text and last["text_end"] == len(self.text):
            self.text += BREAK
        self.thoughts += part.reasoning
        self.text += part.content

    async def render(self) -> None:
        """Renders what arrived since the last call."""
        async with self._rendering:
            thoughts, text, calls = len(self.thoughts), len(self.text), len(self.calls)
            if text > self._shown.text:
                settled, self.tail = await run_in_threadpool(self._live.push, self.text[self._shown.text : text])
                self.html += settled
            self._shown = Position(thoughts, text, len(self.html), calls)

    def snapshot(self) -> tuple[Position, Json]:
        """Returns all that is rendered, and the position after it."""
        shown = self._shown
        whole = {"html": self.html[: shown.html], "tail": self.tail, "thoughts": self.thoughts[: shown.thoughts]}
        return shown, {**whole, "text": self.text[: shown.text], "calls": self.calls[: shown.calls]}

    def since(self, seen: Position) -> tuple[Position, Json]:
        """Returns what a reader who is at ``seen`` lacks, and the position after it."""
        shown = self._shown
        return shown, {
            "thoughts": self.thoughts[seen.thoughts : shown.thoughts],
            "text": self.text[seen.text : shown.text],
            "settled": self.html[seen.html : shown.html],
            "tail": self.tail,
            "calls": self.calls[seen.calls : shown.calls],
        }
