"""Templates that read the tools from the system message and know no calls (Phi-4-mini)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_READS = re.compile(r"\[['\"]tools['\"]\]")
_OTHER_USE = re.compile(r"(?<!['\"])\btools\b(?!['\"])|tool_calls")
_SYSTEM = {"role": "system", "content": "You are a helpful assistant with some tools."}
"""The system message of the published examples."""


def reads_tools_of_messages(source: str) -> bool:
    """Whether a template's ``source`` has a message's field "tools" as the only place for tools."""
    return bool(_READS.search(source)) and not _OTHER_USE.search(source)


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[Mapping[str, Any]]:
    """Returns ``messages`` with the functions of ``tools`` in the system message, and with calls and results as text.

    Calls are written between the tokens that the model uses for them, and results have the role that names their token.
    """
    chat = [_plain(message) for message in messages]
    if not tools:
        return chat
    if chat[0].get("role") != "system":
        chat.insert(0, _SYSTEM)
    return [{**chat[0], "tools": _json([tool["function"] for tool in tools])}, *chat[1:]]


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message.get("role") == "tool":
        return {**message, "role": "tool_response"}
    functions = [call.get("function") for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    if not functions:
        return message
    text = f"<|tool_call|>{_json(functions)}<|/tool_call|>"
    return {**message, "content": (message.get("content") or "") + text}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
