"""The export file of DeepSeek: a ``mapping`` of nodes whose messages have typed ``fragments``.

Older files have ``role``, ``content`` and ``thinking_content`` in place of fragments.
"""

from __future__ import annotations

from freedive.json_object import Json
from freedive.server.conversations.imports.tree import Node, build
from freedive.server.conversations.imports.values import label, listed, mapping, milliseconds, text, title
from freedive.server.conversations.records import ConversationDraft, FileDraft, MessageDraft

THOUGHTS = ("thinking_content", "reasoning_content")


def recognises(value: Json) -> bool:
    """Whether a conversation with a ``mapping`` is DeepSeek's: ChatGPT's messages have an author."""
    messages = [mapping(mapping(node).get("message")) for node in value["mapping"].values()]
    return any("fragments" in message or "inserted_at" in message for message in messages) or (
        "inserted_at" in value and not any("author" in message for message in messages)
    )


def read(value: Json) -> ConversationDraft:
    """Returns a conversation. What the model looked up is left out; a file without its text is named."""
    created = milliseconds(value.get("inserted_at"))
    files: list[FileDraft] = []
    nodes = {}
    for key, node in value["mapping"].items():
        parent = mapping(node).get("parent")
        message = _message(mapping(mapping(node).get("message")), files, created)
        nodes[key] = Node(str(parent) if isinstance(parent, str | int) else None, message)
    current = value.get("current_node", value.get("current_message_id"))
    messages, leaf = build(nodes, str(current) if isinstance(current, str | int) else None)
    return ConversationDraft(
        title=title(value.get("title")),
        named=True,
        pinned=value.get("pinned") is True,
        created=created,
        updated=milliseconds(value.get("updated_at"), created),
        messages=messages,
        leaf=leaf,
        files=files,
    )


def _message(message: Json, files: list[FileDraft], created: int) -> MessageDraft | None:
    """Returns the message of a node, and adds its files to ``files``."""
    fragments = [mapping(each) for each in listed(message.get("fragments"))]
    texts = {
        kind: "\n\n".join(filter(None, (text(each.get("content")) for each in fragments if each.get("type") == kind)))
        for kind in ("REQUEST", "THINK", "RESPONSE")
    }
    asks = bool(texts["REQUEST"]) or text(message.get("role")).lower() == "user"
    said = texts["REQUEST"] if asks else texts["RESPONSE"]
    said = said or text(message.get("content"))
    thoughts = texts["THINK"] or next(filter(None, (text(message.get(name)) for name in THOUGHTS)), "")
    given, names = [], []
    for file in map(mapping, listed(message.get("files"))):
        name, content = title(file.get("file_name") or file.get("name")), text(file.get("content"))
        if content:
            given.append(len(files))
            files.append(FileDraft(name=name, text=content, created=created))
        elif name:
            names.append(f"[{name}]")
    said = "\n\n".join(filter(None, [said, *names]))
    if not (said or thoughts or given):
        return None
    return MessageDraft(
        role="user" if asks else "assistant",
        content=text(said),
        reasoning=text(thoughts),
        files=given[:1000],
        model="" if asks else label(message.get("model")),
        created=milliseconds(message.get("inserted_at"), created),
    )
