"""Completions as Anthropic's content blocks: whole, or as streaming events."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from freedive.json_object import Json
from freedive.text.arguments import argument_values
from freedive.text.dialects.dialect import Call, Event, Text, Thought


def content(events: Iterable[Event]) -> list[Json]:
    """Returns the content blocks of a complete answer, in the order of its events."""
    blocks: list[Json] = []
    for _, group in groupby(events, key=type):
        same = list(group)
        if isinstance(same[0], Call):
            blocks += map(block, same)
        else:
            text = "".join(event.text for event in same if not isinstance(event, Call))
            blocks.append(block(replace(same[0], text=text)))
    return blocks


def block(event: Event) -> Json:
    """Returns the block of one complete text, thought or call; a call without an id gets a new one.

    Thoughts have an empty signature, because this server does not need to verify them.
    """
    match event:
        case Text(text):
            return {"type": "text", "text": text}
        case Thought(text):
            return {"type": "thinking", "thinking": text, "signature": ""}
        case Call(name, arguments, id):
            identity = {"id": id or f"toolu_{uuid.uuid4().hex}", "name": name}
            return {"type": "tool_use", **identity, "input": argument_values(arguments)}


class BlockStream:
    """Writes one answer as streaming events: each block starts, grows, and stops before the next one."""

    def __init__(self) -> None:
        self._index = -1
        self._open: Event | None = None

    def write(self, event: Event) -> Iterator[Json]:
        """Yields the streaming events for one more ``event`` of the answer."""
        if isinstance(event, Call) or type(event) is not type(self._open):
            yield from self._begin(event)
        if not (isinstance(event, Thought) and not event.text):
            yield self._grown(_delta(event))

    def wait(self, thinks: bool) -> Iterator[Json]:
        """Yields an empty delta of the open block; opens the likely next block if none is open."""
        if self._open is None or isinstance(self._open, Call):
            yield from self._begin(Thought("") if thinks else Text(""))
        yield self._grown(_delta(Thought("") if isinstance(self._open, Thought) else Text("")))

    def _begin(self, event: Event) -> Iterator[Json]:
        yield from self.stop()
        self._index, self._open = self._index + 1, event
        empty = replace(event, arguments="{}") if isinstance(event, Call) else replace(event, text="")
        yield {"type": "content_block_start", "index": self._index, "content_block": block(empty)}

    def stop(self) -> Iterator[Json]:
        """Yields the end of the open block, if there is one."""
        if isinstance(self._open, Thought):
            yield self._grown({"type": "signature_delta", "signature": ""})
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = None

    def _grown(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _delta(event: Event) -> Json:
    match event:
        case Text(text):
            return {"type": "text_delta", "text": text}
        case Thought(text):
            return {"type": "thinking_delta", "thinking": text}
        case Call(arguments=arguments):
            return {"type": "input_json_delta", "partial_json": arguments}
