"""The output items of a response while it is generated, and their streaming events."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from freedive.engine.generation import TokenLogprobs
from freedive.json_object import Json
from freedive.server.completion_stream import Delta
from freedive.server.logprobs import logprob_object
from freedive.server.model import Tokenizer
from freedive.server.openai.responses import items
from freedive.server.openai.responses.tools import Calls
from freedive.text.dialects.dialect import Call, Text, Thought

CALL_EVENTS = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
}
"""The event name and the field of a call's input, by type of the item."""


class Output:
    """The output items of one response. Texts and thoughts are streamed in chunks, each call is added as a whole.

    Each run of text or thoughts is one item. ``calls`` converts calls to items. With ``seals``, items of thoughts also
    have ``encrypted_content``.
    """

    def __init__(self, tokenizer: Tokenizer, calls: Calls, *, seals: bool) -> None:
        self.items: list[Json] = []
        self._calls = calls
        self._tokenizer = tokenizer
        self._seals = seals
        self._growing: type[Text | Thought] | None = None
        self._logprobs: list[TokenLogprobs] = []  # of tokens whose text is not in an event yet

    def grow(self, delta: Delta) -> Iterator[Json]:
        """Adds ``delta`` to the items, and yields its streaming events."""
        self._logprobs += delta.logprobs
        for event in delta.events:
            if type(event) is not self._growing:
                yield from self._close("completed")
            if isinstance(event, Call):
                yield from self._call(event)
            else:
                yield from self._say(event)
        if delta.finish:
            yield from self._close("incomplete" if delta.finish == "length" else "completed")

    def _call(self, call: Call) -> Iterator[Json]:
        self._logprobs.clear()
        item = self._calls.item(call.name, call.arguments, call.id or f"call_{uuid.uuid4().hex}")
        event_name, field = CALL_EVENTS[item["type"]]
        yield from self._add(item, **{field: ""})
        place = {"item_id": item["id"], "output_index": len(self.items) - 1}
        yield {"type": f"response.{event_name}.delta", **place, "delta": item[field]}
        yield {"type": f"response.{event_name}.done", **place, "name": item["name"], field: item[field]}
        yield self._done()

    def _say(self, event: Text | Thought) -> Iterator[Json]:
        if self._growing is None:
            self._growing = type(event)
            item = items.message("assistant", [""]) if isinstance(event, Text) else items.reasoning([""])
            yield from self._add(item, content=[])
            yield {"type": "response.content_part.added", **self._place, "part": dict(self._part)}
        self._part["text"] += event.text
        logprobs = self._text_logprobs(event.text) if isinstance(event, Text) else []
        if logprobs:
            self._part["logprobs"] = [*self._part.get("logprobs", []), *logprobs]
        self._logprobs.clear()
        yield self._part_event("delta", delta=event.text, logprobs=logprobs)

    def _close(self, status: str) -> Iterator[Json]:
        if self._growing is None:
            return
        item = self.items[-1]
        item["status"] = status
        if self._seals and self._growing is Thought:
            item["encrypted_content"] = items.sealed(self._part["text"])
        yield self._part_event("done", text=self._part["text"], logprobs=self._part.get("logprobs", []))
        yield {"type": "response.content_part.done", **self._place, "part": self._part}
        yield self._done()
        self._growing = None

    def _add(self, item: Json, **empty: Any) -> Iterator[Json]:
        self.items.append(item)
        begun = item | {"status": "in_progress"} | empty
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": begun}

    def _done(self) -> Json:
        return {
            "type": "response.output_item.done",
            "output_index": len(self.items) - 1,
            "item": self.items[-1],
        }

    def _part_event(self, what: str, logprobs: Sequence[Json], **text: str) -> Json:
        """Returns an event of the growing part; events of texts also have log-probabilities."""
        extra = {"logprobs": logprobs} if self._growing is Text else {}
        return {"type": f"response.{self._part['type']}.{what}", **self._place, **text, **extra}

    @property
    def _part(self) -> Json:
        part: Json = self.items[-1]["content"][0]
        return part

    @property
    def _place(self) -> Json:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, "content_index": 0}

    def _text_logprobs(self, text: str) -> list[Json]:
        """Returns the log-probabilities of the last tokens, which spell ``text``; earlier tokens are markers."""
        needed, start = len(text.encode()), len(self._logprobs)
        while start and needed > 0:
            start -= 1
            needed -= len(self._tokenizer.token_bytes(self._logprobs[start].token_id))
        return [logprob_object(entry, self._tokenizer) for entry in self._logprobs[start:]]
