"""The export file of Open WebUI: each ``chat`` has a ``history`` of messages by id."""

from __future__ import annotations

import re

from freedive.json_object import Json
from freedive.server.conversations.imports.tree import Node, build
from freedive.server.conversations.imports.values import label, listed, mapping, milliseconds, text, title
from freedive.server.conversations.records import ConversationDraft, MessageDraft

_END = "</details>"
_DETAILS = re.compile(
    rf'<details type="reasoning"[^>]{{0,200}}>\s?(?:<summary>[^<]{{0,200}}</summary>)?(.*?){_END}\n?', re.S
)
"""Thoughts in the text of an answer, each line as a quotation."""


def read(value: Json) -> ConversationDraft:
    """Returns a conversation. Files are named."""
    chat = value["chat"]
    history = mapping(chat.get("history"))
    created = milliseconds(value.get("created_at", chat.get("timestamp")))
    nodes = {}
    for key, message in mapping(history.get("messages")).items():
        parent = mapping(message).get("parentId")
        nodes[key] = Node(parent if isinstance(parent, str) else None, _message(mapping(message), created))
    current = history.get("currentId")
    messages, leaf = build(nodes, current if isinstance(current, str) else None)
    system = text(mapping(chat.get("params")).get("system") or chat.get("system"))
    return ConversationDraft(
        title=title(value.get("title") or chat.get("title")),
        named=True,
        pinned=value.get("pinned") is True,
        created=created,
        updated=milliseconds(value.get("updated_at"), created),
        settings={"system": system} if system else {},
        messages=messages,
        leaf=leaf,
    )


def _message(message: Json, created: int) -> MessageDraft | None:
    role = message.get("role")
    if role not in ("user", "assistant"):
        return None
    said, inside = _split(text(message.get("content"))) if role == "assistant" else (text(message.get("content")), [])
    thoughts = [text(message.get("reasoning_content")), *inside]
    files = (mapping(file) for file in listed(message.get("files")))
    names = (title(file.get("name") or mapping(file.get("file")).get("filename")) for file in files)
    said = "\n\n".join(filter(None, [said, *(f"[{name}]" for name in names if name)]))
    error = mapping(message.get("error")).get("content")
    return MessageDraft(
        role=role,
        content=text(said),
        reasoning=text("\n\n".join(filter(None, thoughts))),
        model=label(message.get("model")) if role == "assistant" else "",
        status="failed" if error else "complete",
        error=text(error)[:10_000],
        created=milliseconds(message.get("timestamp"), created),
    )


def _split(said: str) -> tuple[str, list[str]]:
    """Returns the text of an answer without its thoughts, and these.

    Nothing is searched behind the last end of a block: each beginning there would be a search to the end of the text.
    """
    end = said.rfind(_END) + len(_END) if _END in said else 0
    thoughts = [_unquoted(match[1]) for match in _DETAILS.finditer(said, 0, end)]
    return (_DETAILS.sub("", said[:end]) + said[end:]).strip() if thoughts else said, thoughts


def _unquoted(quoted: str) -> str:
    lines = (line.removeprefix(">").removeprefix(" ") for line in quoted.strip().splitlines())
    return "\n".join(lines)
