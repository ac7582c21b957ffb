"""Whole conversations, from a draft into the tables and back; in a draft positions stand for ids."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from freedive.server.conversations.files import insert_file
from freedive.server.conversations.messages import insert_message
from freedive.server.conversations.records import ConversationDraft, FileDraft, MessageDraft, Tree
from freedive.server.conversations.rows import COLUMNS, grow, new_id
from freedive.server.conversations.schema import EACH
from freedive.server.conversations.search import add_document


def insert_draft(sql: sqlite3.Connection, prefix: str, owner: str, draft: ConversationDraft) -> int:
    """Stores a conversation, whose id begins with ``prefix``, and returns its number."""
    row = (
        new_id(prefix),
        draft.title,
        draft.named,
        draft.folder,
        draft.pinned,
        draft.created,
        draft.updated,
        None,
        json.dumps(draft.settings),
        None,
        "[]",  # what is imported is asked about
    )
    query = f"INSERT INTO conversation ({COLUMNS}, owner, num_documents) VALUES ({'?, ' * len(row)}?, 0)"
    number = sql.execute(query, (*row, owner)).lastrowid
    assert number is not None
    grow(sql, number, EACH + len(json.dumps(draft.settings)))
    add_document(sql, number, 0, draft.title)
    files = [insert_file(sql, number, file).id for file in draft.files]
    ids: list[str] = []
    for message in draft.messages:
        parent = None if message.parent is None else ids[message.parent]
        ids.append(insert_message(sql, number, message, parent, [files[index] for index in message.files]).id)
    if draft.leaf is not None:
        sql.execute("UPDATE conversation SET leaf = ? WHERE number = ?", (ids[draft.leaf], number))
    return number


def draft_of(tree: Tree, texts: Sequence[str]) -> ConversationDraft:
    """Returns a conversation as a draft; ``texts`` are those of its files. What runs is exported as interrupted."""
    whole = tree.conversation
    positions = {message.id: index for index, message in enumerate(tree.messages)}
    files = {file.id: index for index, file in enumerate(tree.files)}
    return ConversationDraft(
        title=whole.title,
        named=whole.named,
        folder=whole.folder,
        pinned=whole.pinned,
        created=whole.created,
        updated=whole.updated,
        settings=whole.settings,
        messages=[
            MessageDraft(
                role=each.role,
                content=each.content,
                parent=None if each.parent is None else positions[each.parent],
                reasoning=each.reasoning,
                files=[files[id] for id in each.files],
                model=each.model,
                status="interrupted" if each.status == "running" else each.status,
                error=each.error,
                finish=each.finish,
                usage=each.usage,
                timings=each.timings,
                created=each.created,
                calls=each.calls,
            )
            for each in tree.messages
        ],
        leaf=None if whole.leaf is None else positions[whole.leaf],
        files=[
            FileDraft(
                name=file.name,
                text=text,
                media_type=file.media_type,
                num_tokens=file.num_tokens,
                created=file.created,
            )
            for file, text in zip(tree.files, texts, strict=True)
        ],
    )
