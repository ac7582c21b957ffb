"""The items of a conversation in OpenAI's Responses API, and their conversion to messages for chat templates."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from freedive.json_object import Json
from freedive.server.call_ids import object_text


def message(role: str, texts: Iterable[str]) -> Json:
    """Returns the item of a message with text parts."""
    kind: Json = {"type": "output_text", "annotations": []} if role == "assistant" else {"type": "input_text"}
    return _item("msg", "message", role=role, content=[kind | {"text": text} for text in texts], status="completed")


def reasoning(texts: Iterable[str], summary: Iterable[str] = ()) -> Json:
    """Returns the item of the assistant's thoughts."""
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    summaries = [{"type": "summary_text", "text": text} for text in summary]
    return _item("rs", "reasoning", summary=summaries, content=content, status="completed")


def function_call(name: str, arguments: str, call_id: str, namespace: str | None = None) -> Json:
    """Returns the item of a function call; ``arguments`` are JSON text."""
    return _call("fc", "function_call", name, call_id, namespace, arguments=arguments)


def custom_tool_call(name: str, input: str, call_id: str, namespace: str | None = None) -> Json:
    """Returns the item of a custom tool call, whose input is plain text."""
    return _call("ctc", "custom_tool_call", name, call_id, namespace, input=input)


def _call(prefix: str, kind: str, name: str, call_id: str, namespace: str | None, **given: str) -> Json:
    within = {"namespace": namespace} if namespace else {}
    return _item(prefix, kind, call_id=call_id, name=name, **given, **within, status="completed")


def full_name(namespace: str | None, name: str) -> str:
    """Returns the name by which the model calls a tool of a namespace: ``namespace__name``."""
    return f"{namespace.rstrip('_')}__{name}" if namespace else name


OUTPUTS = ("function_call_output", "custom_tool_call_output")
"""Types of items that hold the result of a call."""


def call_output(kind: str, call_id: str, output: str | Sequence[Json]) -> Json:
    """Returns the item of a call's result; ``kind`` is one of :data:`OUTPUTS`."""
    return _item("fco", kind, call_id=call_id, output=output, status="completed")


def new_id(prefix: str) -> str:
    """Returns a new id for an item or a response; ids that clients send with items are not used."""
    return f"{prefix}_{uuid.uuid4().hex}"


def _item(prefix: str, kind: str, **fields: Any) -> Json:
    return {"id": new_id(prefix), "type": kind, **fields}


def sealed(text: str) -> str:
    """Encodes thoughts as one opaque string, which clients send back in the next turn. It is not encrypted."""
    return base64.b64encode(text.encode()).decode()


def unsealed(seal: str) -> str | None:
    """Decodes the thoughts of :func:`sealed`, None if another server wrote the string."""
    try:
        return base64.b64decode(seal, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


PARTS = ("reasoning_content", "content", "tool_calls")
"""The fields of an assistant message, in the order in which the model generates them."""


def messages(items: Iterable[Json]) -> list[Json]:
    """Converts items to messages of chat templates; thoughts, text and calls of one turn become one message."""
    turns: list[Json] = []
    for item in items:
        if item["type"] in OUTPUTS:
            turns.append({"role": "tool", "tool_call_id": item["call_id"], "content": _text(item["output"])})
        elif item.get("role", "assistant") != "assistant":
            role = "system" if item["role"] == "developer" else item["role"]
            turns.append({"role": role, "content": _text(item["content"])})
        else:
            _say(turns, *_part(item))
    return [{"content": "", **turn} for turn in turns]


def _part(item: Json) -> tuple[str, Any]:
    match item["type"]:
        case "reasoning":
            return "reasoning_content", _text(item["content"] or item["summary"])
        case "message":
            return "content", _text(item["content"])
        case _:
            text = (
                item["arguments"] if "arguments" in item else json.dumps({"input": item["input"]}, ensure_ascii=False)
            )
            arguments = object_text(text)
            function = {"name": full_name(item.get("namespace"), item["name"]), "arguments": arguments}
            return "tool_calls", [{"id": item["call_id"], "type": "function", "function": function}]


def _say(turns: list[Json], name: str, value: Any) -> None:
    """Adds a field to the last assistant message; starts a new message if it has this field or a later one already."""
    turn = turns[-1] if turns and turns[-1]["role"] == "assistant" else None
    if turn and name == "tool_calls":
        turn[name] = [*turn.get(name, []), *value]
    elif turn and not any(later in turn for later in PARTS[PARTS.index(name) :]):
        turn[name] = value
    else:
        turns.append({"role": "assistant", name: value})


def _text(parts: str | Sequence[Json]) -> str:
    return parts if isinstance(parts, str) else "\n".join(part["text"] for part in parts)
