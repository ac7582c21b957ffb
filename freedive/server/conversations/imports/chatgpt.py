"""The export file of ChatGPT: each conversation is a ``mapping`` of nodes with ``author`` and ``content``."""

from __future__ import annotations

from typing import Any

from freedive.json_object import Json
from freedive.server.conversations.imports.tree import Node, build
from freedive.server.conversations.imports.values import label, listed, mapping, milliseconds, text, title
from freedive.server.conversations.records import ConversationDraft, MessageDraft


def read(value: Json) -> ConversationDraft:
    """Returns a conversation. System messages, calls of tools and their results are left out, images named."""
    created = milliseconds(value.get("create_time"))
    nodes = {key: _node(mapping(node), created) for key, node in value["mapping"].items()}
    messages, leaf = build(nodes, value["current_node"] if isinstance(value.get("current_node"), str) else None)
    return ConversationDraft(
        title=title(value.get("title")),
        named=True,
        pinned=value.get("is_starred") is True,
        created=created,
        updated=milliseconds(value.get("update_time"), created),
        messages=messages,
        leaf=leaf,
    )


def _node(node: Json, created: int) -> Node:
    parent = node.get("parent")
    return Node(parent if isinstance(parent, str) else None, _message(mapping(node.get("message")), created))


def _message(message: Json, created: int) -> MessageDraft | None:
    role, metadata = mapping(message.get("author")).get("role"), mapping(message.get("metadata"))
    if role not in ("user", "assistant") or metadata.get("is_visually_hidden_from_conversation") is True:
        return None
    if message.get("recipient", "all") != "all":  # a call of a tool
        return None
    content = mapping(message.get("content"))
    said, thoughts = _said(content), ""
    if content.get("content_type") == "thoughts":
        thoughts = "\n\n".join(
            filter(None, (text(mapping(each).get("content")) for each in listed(content.get("thoughts"))))
        )
    elif content.get("content_type") == "reasoning_recap":
        return None
    names = (text(mapping(each).get("name")) for each in listed(metadata.get("attachments")))
    said = "\n\n".join(filter(None, [said, *(f"[{name}]" for name in names if name)]))
    if not (said or thoughts):
        return None
    return MessageDraft(
        role=role,
        content=text(said),
        reasoning=text(thoughts),
        model=label(metadata.get("model_slug")) if role == "assistant" else "",
        created=milliseconds(message.get("create_time"), created),
    )


def _said(content: Json) -> str:
    """Returns the text of a message; "" for thoughts."""
    if content.get("content_type") == "code":
        return f"```\n{text(content.get('text'))}\n```"
    return "\n\n".join(filter(None, map(_part, listed(content.get("parts")))))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return text(part)
    kind = text(mapping(part).get("content_type"))
    if kind == "audio_transcription":
        return text(part.get("text"))
    return f"[{kind.partition('_')[0]}]" if kind.endswith("_pointer") else ""
