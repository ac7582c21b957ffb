"""Calls of earlier turns as chat templates need them: with ids, and with objects as arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from freedive.text.arguments import argument_values

Json = dict[str, Any]


def matched(messages: Iterable[Json]) -> list[Json]:
    """``messages``, as chat templates know them, with an id for every call and for every result.

    A call that came without gets its number: nine letters and digits are what Mistral's templates want of an id. A
    result without is of the first call of its name, or of any name if it has none, that was not answered before.
    """
    written: list[Json] = []
    unanswered: list[Json] = []
    num_calls = 0
    for message in messages:
        if calls := message.get("tool_calls"):
            calls = [call | {"id": call["id"] or f"call{num_calls + i:05}"} for i, call in enumerate(calls)]
            message = message | {"tool_calls": calls}
            num_calls += len(calls)
            unanswered += calls
        if message["role"] == "tool" and (id := _answered(message, unanswered)) is not None:
            message = message | {"tool_call_id": id}
        written.append(message)
    return written


def _answered(result: Json, unanswered: list[Json]) -> str | None:
    """The id of the call that a result is of, which is then no longer unanswered."""
    id, name = result.get("tool_call_id"), result.get("name")
    for call in unanswered:
        if call["id"] == id or (id is None and name in (None, call["function"]["name"])):
            unanswered.remove(call)
            return str(call["id"])
    return id


def object_text(arguments: str) -> str:
    """``arguments`` if they are a JSON object, else one that holds them.

    A model may have written anything, and may have been cut off; templates that go through the arguments would fail
    from then on.
    """
    try:
        value = argument_values(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    if isinstance(value, dict):
        return arguments
    return json.dumps({} if value is None else {"arguments": arguments}, ensure_ascii=False)
