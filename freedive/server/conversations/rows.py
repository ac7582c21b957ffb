"""Rows of the tables as records, and the rows that belong to an owner."""

from __future__ import annotations

import json
import secrets
import sqlite3
from typing import Any

from freedive.errors import NotFound, UserError
from freedive.server.conversations.records import MAX_DOCUMENTS, Conversation, File, Message
from freedive.server.conversations.schema import EACH

COLUMNS = "id, title, named, folder, pinned, created, updated, deleted, settings, leaf, allowed"
"""The columns of a conversation, in the order of :func:`conversation_of`."""
MESSAGE_COLUMNS = (
    "id, parent, role, content, reasoning, files, model, status, error, finish, usage, timings, created, calls"
)
FILE_COLUMNS = "id, name, media_type, num_bytes, num_tokens, created"

NUM_ID_BYTES = 12


def new_id(prefix: str) -> str:
    """Returns a random id that begins with ``prefix``."""
    return f"{prefix}_{secrets.token_hex(NUM_ID_BYTES)}"


def conversation_of(row: tuple[Any, ...]) -> Conversation:
    """Returns the conversation of a row of :data:`COLUMNS`."""
    id, title, named, folder, pinned, created, updated, deleted, settings, leaf, allowed = row
    return Conversation(
        id=id,
        title=title,
        named=bool(named),
        folder=folder,
        pinned=bool(pinned),
        created=created,
        updated=updated,
        deleted=deleted,
        settings=json.loads(settings),
        leaf=leaf,
        allowed=json.loads(allowed),
    )


def message_of(row: tuple[Any, ...]) -> Message:
    """Returns the message of a row of :data:`MESSAGE_COLUMNS`."""
    id, parent, role, content, reasoning, files, model, status, error, finish, usage, timings, created, calls = row
    return Message(
        id=id,
        parent=parent,
        role=role,
        content=content,
        reasoning=reasoning,
        files=json.loads(files),
        model=model,
        status=status,
        error=error,
        finish=finish,
        usage=json.loads(usage),
        timings=json.loads(timings),
        created=created,
        calls=json.loads(calls),
    )


def file_of(row: tuple[Any, ...]) -> File:
    """Returns the file of a row of :data:`FILE_COLUMNS`."""
    id, name, media_type, num_bytes, num_tokens, created = row
    return File(id=id, name=name, media_type=media_type, num_bytes=num_bytes, num_tokens=num_tokens, created=created)


def owned(sql: sqlite3.Connection, owner: str, id: str, *, deleted: bool = False) -> tuple[int, Conversation]:
    """Returns the number and the record of a conversation. Raises NotFound for those of other owners.

    Raises it for deleted ones as well, unless ``deleted`` is true.
    """
    query = f"SELECT number, {COLUMNS} FROM conversation WHERE id = ? AND owner = ?"
    row = sql.execute(query, (id, owner)).fetchone()
    if row and (deleted or row[1 + COLUMNS.split(", ").index("deleted")] is None):
        return row[0], conversation_of(row[1:])
    raise NotFound(f"There is no conversation {id!r}", "It may have been deleted: list them again", param="id")


def message_in(sql: sqlite3.Connection, number: int, id: str) -> Message:
    """Returns a message of the conversation with this number, without its pieces. Raises NotFound."""
    query = f"SELECT {MESSAGE_COLUMNS} FROM message WHERE id = ? AND conversation = ?"
    row = sql.execute(query, (id, number)).fetchone()
    if not row:
        raise NotFound(f"The conversation has no message {id!r}", "Read the conversation again", param="message")
    return message_of(row)


def grow(sql: sqlite3.Connection, number: int, num_bytes: int) -> None:
    """Counts so many bytes more, or fewer if negative, as those of the conversation."""
    sql.execute("UPDATE conversation SET num_bytes = num_bytes + ? WHERE number = ?", (num_bytes, number))


def next_document(sql: sqlite3.Connection, number: int, num_bytes: int) -> int:
    """Returns the number of the conversation's next message or file, which has ``num_bytes``, and counts it."""
    grow(sql, number, EACH + num_bytes)
    sql.execute("UPDATE conversation SET num_documents = num_documents + 1 WHERE number = ?", (number,))
    (document,) = sql.execute("SELECT num_documents FROM conversation WHERE number = ?", (number,)).fetchone()
    if document >= MAX_DOCUMENTS:
        raise UserError("The conversation has too many messages and files", "Begin a new one")
    return int(document)
