"""Tool calls of earlier turns as chat templates need them: with ids, and with objects as arguments."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

from freedive.json_object import Json
from freedive.text.arguments import argument_values


def matched(messages: Iterable[Json]) -> list[Json]:
    """Returns ``messages`` (in the format of chat templates) with an id for every tool call and every tool result.

    A call without an id gets its number as nine letters and digits, which Mistral's templates require. A result without
    an id answers the first unanswered call of the same tool, or of any tool if the result has no name.
    """
    written: list[Json] = []
    unanswered = _Unanswered()
    num_calls = 0
    for message in messages:
        if calls := message.get("tool_calls"):
            calls = [call | {"id": call["id"] or f"call{num_calls + i:05}"} for i, call in enumerate(calls)]
            message = message | {"tool_calls": calls}
            num_calls += len(calls)
            for call in calls:
                unanswered.add(call["id"], call["function"]["name"])
        if message["role"] == "tool" and (id := unanswered.take(message.get("tool_call_id"), message.get("name"))):
            message = message | {"tool_call_id": id}
        written.append(message)
    return written


class _Unanswered:
    """Tool calls without a result, by id and by name, each in order of arrival."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._ids: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def add(self, id: str, name: str) -> None:
        self._names[id] = name
        self._ids[name][id] = None

    def take(self, id: str | None, name: str | None) -> str | None:
        """Returns the id of the call that a result with this ``id`` and ``name`` answers, and removes that call."""
        if id is None:
            id = next(iter(self._names if name is None else self._ids[name]), None)
        if id in self._names:
            del self._ids[self._names.pop(id)][id]
        return id


def object_text(arguments: str) -> str:
    """Returns ``arguments`` if they are a JSON object, else a JSON object that contains them as text.

    A model may write invalid JSON, or its answer may be cut; templates that iterate over the arguments would fail in
    every later turn.
    """
    try:
        value = argument_values(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    if isinstance(value, dict):
        return arguments
    return json.dumps({} if value is None else {"arguments": arguments}, ensure_ascii=False)
