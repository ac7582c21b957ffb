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
    """The blocks of a whole answer, in the order in which they were said."""
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
    """The block of one whole text, thought or call, which gets an id of its own where the model gave none.

    Thoughts are not signed: they are nobody's secret here.
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
    """Writes one answer as events: each block starts, grows, and stops before the next."""

    def __init__(self) -> None:
        self._index = -1
        self._open: Event | None = None

    def write(self, event: Event) -> Iterator[Json]:
        """What ``event`` adds."""
        if isinstance(event, Call) or type(event) is not type(self._open):
            yield from self._begin(event)
        if not (isinstance(event, Thought) and not event.text):
            yield self._grown(_delta(event))

    def wait(self, thinks: bool) -> Iterator[Json]:
        """An empty piece of the block that is open, else of the one that is likely to come next."""
        if self._open is None or isinstance(self._open, Call):
            yield from self._begin(Thought("") if thinks else Text(""))
        yield self._grown(_delta(Thought("") if isinstance(self._open, Thought) else Text("")))

    def _begin(self, event: Event) -> Iterator[Json]:
        yield from self.stop()
        self._index, self._open = self._index + 1, event
        empty = replace(event, arguments="{}") if isinstance(event, Call) else replace(event, text="")
        yield {"type": "content_block_start", "index": self._index, "content_block": block(empty)}

    def stop(self) -> Iterator[Json]:
        """The end of the block that is open, if one is."""
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
