"""Trees of messages from maps of nodes, some of which hold nothing that is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from freedive.errors import UserError
from freedive.server.conversations.records import MAX_DOCUMENTS, MessageDraft


@dataclass(frozen=True)
class Node:
    """A node of an export file; ``message`` is None if nothing of it is kept."""

    parent: str | None
    message: MessageDraft | None


def build(nodes: Mapping[str, Node], leaf: str | None) -> tuple[list[MessageDraft], int | None]:
    """Returns the messages in an order with parents first, and the position of the leaf.

    A node that is not kept gives its children to its parent. An answer that follows an answer (a model that called
    tools, or wrote its thoughts as a message) becomes one with it. If ``leaf`` is not one of ``nodes``, the last
    message is the leaf. Raises UserError if a node is its own ancestor, or if there are too many.
    """
    if len(nodes) > MAX_DOCUMENTS >> 1:
        raise UserError(f"It has more than {MAX_DOCUMENTS >> 1} messages", "Remove it from the file")
    order, kept = _in_order(nodes)
    positions = {key: index for index, key in enumerate(order)}
    messages = []
    for key in order:
        message, parent = nodes[key].message, kept[key]
        assert message
        messages.append(replace(message, parent=None if parent is None else positions[parent]))
    last = order[-1] if order else None
    if leaf is not None and leaf in nodes:
        last = leaf if nodes[leaf].message else kept[leaf]
    return _joined(messages, None if last is None else positions[last])


def _in_order(nodes: Mapping[str, Node]) -> tuple[list[str], dict[str, str | None]]:
    """Returns the keys of kept nodes with parents first, and the nearest kept ancestor of every node."""
    order: list[str] = []
    kept: dict[str, str | None] = {}
    for key in nodes:
        chain: dict[str, None] = {}
        at: str | None = key
        while at is not None and at in nodes and at not in kept:
            if at in chain:
                raise UserError("A message of it comes before itself", "Remove it from the file")
            chain[at] = None
            at = nodes[at].parent
        above = None
        if at is not None and at in nodes:
            above = at if nodes[at].message else kept[at]
        for each in reversed(chain):
            kept[each] = above
            if nodes[each].message:
                order.append(each)
                above = each
    return order, kept


def _joined(messages: list[MessageDraft], leaf: int | None) -> tuple[list[MessageDraft], int | None]:
    num_children = Counter(message.parent for message in messages)
    result: list[MessageDraft] = []
    moved: list[int] = []
    for message in messages:
        parent = message.parent
        if parent is not None and message.role == messages[parent].role == "assistant" and num_children[parent] == 1:
            before = result[moved[parent]]
            before.content = _both(before.content, message.content)
            before.reasoning = _both(before.reasoning, message.reasoning)
            before.model = message.model or before.model
            before.files = before.files + message.files
            moved.append(moved[parent])
        else:
            moved.append(len(result))
            result.append(replace(message, parent=None if parent is None else moved[parent]))
    return result, None if leaf is None else moved[leaf]


def _both(first: str, second: str) -> str:
    return f"{first}\n\n{second}" if first and second else first or second
