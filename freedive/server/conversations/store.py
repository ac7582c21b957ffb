"""Conversations in one database: lists, folders, changes, deletion, and whole conversations in and out."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.conversations import search
from freedive.server.conversations.drafts import draft_of, insert_draft
from freedive.server.conversations.files import Files
from freedive.server.conversations.messages import Messages, interrupt_running, pieces
from freedive.server.conversations.records import Conversation, ConversationDraft, File, Message, Tree, now
from freedive.server.conversations.room import MAX_OWNED, Room, remove
from freedive.server.conversations.rows import (
    COLUMNS,
    FILE_COLUMNS,
    MESSAGE_COLUMNS,
    conversation_of,
    file_of,
    grow,
    message_in,
    message_of,
    owned,
)
from freedive.server.conversations.schema import STEPS
from freedive.server.conversations.search import Hit, add_document, remove_document
from freedive.server.storage.database import Database
from freedive.server.storage.presence import Presence

KEPT_MS = 30 * 86_400_000
"""Milliseconds after which a deleted conversation is removed for good, when the store is next opened."""

PAGE_BYTES = 4096
"""SQLite's default."""

_OLDER = "AND (pinned, updated, number) < (?, ?, ?)"
_CHANGEABLE = ("title", "named", "folder", "pinned", "settings", "leaf")


@dataclass(frozen=True)
class Page:
    """A part of a list of conversations; ``next`` is the cursor of the rest, None at the end."""

    conversations: list[Conversation]
    next: str | None


class ConversationStore:
    """Conversations in the file ``path``, or in memory; ``prefix`` begins their ids. Safe for several threads.

    Every method takes the ``owner``, the id of a key, and raises NotFound for what belongs to another. If no other
    process has the file open, messages that still run are those of a process that ended: they become interrupted, and
    conversations that were deleted 30 days ago are removed. The conversations of one owner have ``max_owned`` bytes at
    most. With ``max_bytes``, what is new displaces conversations that were continued longest ago. Raises UserError if
    the file cannot be used, and Unavailable if the disk fails later.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        prefix: str = "conv",
        max_bytes: int | None = None,
        max_owned: int = MAX_OWNED,
    ) -> None:
        self._prefix, self._max_bytes = prefix, max_bytes
        self._room = Room(max_owned, max_bytes)
        self._presence = Presence(path) if path else None
        if self._presence:
            with self._presence as presence:
                self._open(path, recover=presence.alone)
        else:
            self._open(path, recover=False)

    def _open(self, path: Path | None, *, recover: bool) -> None:
        self._database = Database(path, STEPS, ("Conversations cannot be read or written", "Check the server's disk"))
        self.messages, self.files = Messages(self._database, self._room), Files(self._database, self._room)
        if self._max_bytes is not None:
            with self._database.reading() as sql:
                sql.execute(f"PRAGMA max_page_count = {2 * self._max_bytes // PAGE_BYTES}")  # more raises Unavailable
        if recover:
            with self._database.writing() as sql:
                interrupt_running(sql)
            self.purge(before=now() - KEPT_MS)

    def close(self) -> None:
        """Closes the store; what is in its file stays."""
        self._database.close()
        if self._presence:
            self._presence.close()

    def create(self, owner: str, draft: ConversationDraft) -> Conversation:
        """Stores a conversation with the messages and files of ``draft``."""
        return self.create_all(owner, [draft])[0]

    def create_all(self, owner: str, drafts: Sequence[ConversationDraft]) -> list[Conversation]:
        """Stores several conversations, all or none."""
        with self._database.writing() as sql:
            numbers = [insert_draft(sql, self._prefix, owner, draft) for draft in drafts]
            self._room.check(sql, owner, numbers)
            query = f"SELECT {COLUMNS} FROM conversation WHERE number = ?"
            return [conversation_of(sql.execute(query, (number,)).fetchone()) for number in numbers]

    def page(self, owner: str, *, folder: str | None = None, after: str | None = None, limit: int = 50) -> Page:
        """Returns a part of the list of conversations: pinned ones first, then by the time of the last message.

        ``folder`` None stands for all folders and "" for those in none. ``after`` is the cursor of an earlier page;
        raises UserError if it is not.
        """
        where, values = "owner = ? AND deleted IS NULL", [owner]
        if folder is not None:
            where, values = f"{where} AND folder = ?", [owner, folder]
        cursor = _position(after) if after else ()
        query = f"SELECT number, {COLUMNS} FROM conversation WHERE {where} {_OLDER if cursor else ''}"
        order = "ORDER BY pinned DESC, updated DESC, number DESC LIMIT ?"
        with self._database.reading() as sql:
            rows = sql.execute(f"{query} {order}", (*values, *cursor, limit + 1)).fetchall()
        found = [conversation_of(row[1:]) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(found, None)
        return Page(found, f"{int(found[-1].pinned)}.{found[-1].updated}.{rows[limit - 1][0]}")

    def folders(self, owner: str) -> dict[str, int]:
        """Returns the number of conversations by folder, in alphabetical order; "" has those that are in none."""
        query = "SELECT folder, count(*) FROM conversation WHERE owner = ? AND deleted IS NULL GROUP BY folder"
        with self._database.reading() as sql:
            return dict(sorted(sql.execute(query, (owner,))))

    def search(self, owner: str, query: str, limit: int = 20) -> list[Hit]:
        """Returns the conversations that have all words of ``query``, best first; any text is a valid query."""
        with self._database.reading() as sql:
            return search.search(sql, owner, query, limit)

    def read(self, owner: str, id: str) -> Tree:
        """Returns a conversation with all messages, those that run with what has arrived."""
        with self._database.reading() as sql:
            number, conversation = owned(sql, owner, id)
            return Tree(conversation, _messages(sql, number), _files(sql, number))

    def settings(self, owner: str, id: str) -> Json:
        """Returns the settings of a conversation."""
        with self._database.reading() as sql:
            return owned(sql, owner, id)[1].settings

    def draft(self, owner: str, id: str) -> ConversationDraft:
        """Returns a whole conversation with the texts of its files, for export."""
        with self._database.reading() as sql:
            number, conversation = owned(sql, owner, id)
            texts = [text for (text,) in sql.execute(_TEXTS, (number,))]
            return draft_of(Tree(conversation, _messages(sql, number), _files(sql, number)), texts)

    def ids(self, owner: str) -> list[str]:
        """Returns the ids of all conversations that are not deleted, oldest first."""
        query = "SELECT id FROM conversation WHERE owner = ? AND deleted IS NULL ORDER BY number"
        with self._database.reading() as sql:
            return [id for (id,) in sql.execute(query, (owner,))]

    def update(self, owner: str, id: str, **changes: Any) -> Conversation:
        """Changes ``title`` (with ``named``), ``folder``, ``pinned``, ``settings`` or ``leaf``.

        Raises NotFound if ``leaf`` is not a message of the conversation.
        """
        assert set(changes) <= set(_CHANGEABLE), changes
        with self._database.writing() as sql:
            number, before = owned(sql, owner, id)
            if changes.get("leaf") is not None:
                message_in(sql, number, changes["leaf"])
            if "title" in changes:
                remove_document(sql, number, 0, before.title)
                add_document(sql, number, 0, changes["title"])
            if "settings" in changes:
                tools = changes["settings"].get("tools") or ()  # one that is turned off is asked about again
                changes["settings"] = json.dumps(changes["settings"])
                grow(sql, number, len(changes["settings"]) - len(json.dumps(before.settings)))
                changes["allowed"] = json.dumps([tool for tool in before.allowed if tool in tools])
            for name, value in changes.items():
                sql.execute(f"UPDATE conversation SET {name} = ? WHERE number = ?", (value, number))
            if "settings" in changes:
                self._room.check(sql, owner, [number])
            return owned(sql, owner, id)[1]

    def delete(self, owner: str, id: str, *, forever: bool = False, if_empty: bool = False) -> bool:
        """Deletes a conversation; :meth:`restore` brings it back for 30 days, unless it is deleted ``forever``.

        Returns whether it did; with ``if_empty``, a conversation that has a message stays.
        """
        with self._database.writing() as sql:
            number, _ = owned(sql, owner, id, deleted=forever)
            if if_empty and sql.execute("SELECT 1 FROM message WHERE conversation = ?", (number,)).fetchone():
                return False
            if forever:
                remove(sql, number)
            else:
                sql.execute("UPDATE conversation SET deleted = ? WHERE number = ?", (now(), number))
        return True

    def restore(self, owner: str, id: str) -> Conversation:
        """Brings a deleted conversation back; one that is not deleted stays as it is."""
        with self._database.writing() as sql:
            number, _ = owned(sql, owner, id, deleted=True)
            sql.execute("UPDATE conversation SET deleted = NULL WHERE number = ?", (number,))
            return owned(sql, owner, id)[1]

    def purge(self, *, before: int) -> None:
        """Removes the conversations of all owners that were deleted before this time, in milliseconds since 1970."""
        with self._database.writing() as sql:
            gone = sql.execute("SELECT number FROM conversation WHERE deleted < ?", (before,)).fetchall()
            for (number,) in gone:
                remove(sql, number)


_TEXTS = "SELECT text FROM file WHERE conversation = ? ORDER BY document"


def _messages(sql: sqlite3.Connection, number: int) -> list[Message]:
    rows = sql.execute(f"SELECT {MESSAGE_COLUMNS} FROM message WHERE conversation = ? ORDER BY document", (number,))
    return [pieces(sql, message_of(row)) for row in rows.fetchall()]


def _files(sql: sqlite3.Connection, number: int) -> list[File]:
    rows = sql.execute(f"SELECT {FILE_COLUMNS} FROM file WHERE conversation = ? ORDER BY document", (number,))
    return [file_of(row) for row in rows]


def _position(cursor: str) -> tuple[int, ...]:
    parts = cursor.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 18 for part in parts):
        raise UserError("The cursor is not one of this list", "Send the 'next' of an earlier page", param="after")
    return tuple(map(int, parts))
