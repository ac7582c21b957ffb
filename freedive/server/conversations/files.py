"""Files that belong to conversations."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection

from freedive.errors import NotFound
from freedive.server.conversations.records import File, FileDraft
from freedive.server.conversations.room import Room
from freedive.server.conversations.rows import FILE_COLUMNS, file_of, grow, new_id, next_document, owned
from freedive.server.conversations.schema import EACH
from freedive.server.conversations.search import add_document, remove_document
from freedive.server.storage.database import Database


class Files:
    """The files of all conversations of a database. Every method raises NotFound for those of another owner."""

    def __init__(self, database: Database, room: Room) -> None:
        self._database, self._room = database, room

    def add(self, owner: str, conversation: str, draft: FileDraft) -> File:
        """Stores a file, whose name can be searched. Raises UserError if there is no room."""
        with self._database.writing() as sql:
            number, _ = owned(sql, owner, conversation)
            file = insert_file(sql, number, draft)
            self._room.check(sql, owner, [number])
            return file

    def text(self, owner: str, conversation: str, id: str) -> str:
        """Returns the text of a file."""
        with self._database.reading() as sql:
            number, _ = owned(sql, owner, conversation)
            _file(sql, number, id)
            return str(sql.execute("SELECT text FROM file WHERE id = ?", (id,)).fetchone()[0])

    def texts(self, owner: str, conversation: str, ids: Collection[str]) -> dict[str, tuple[str, str]]:
        """Returns (name, text) of each of the files ``ids``, by id."""
        with self._database.reading() as sql:
            number, _ = owned(sql, owner, conversation)
            rows = (
                (id, sql.execute("SELECT name, text FROM file WHERE id = ?", (_file(sql, number, id).id,)).fetchone())
                for id in ids
            )
            return {id: (name, text) for id, (name, text) in rows}

    def count(self, owner: str, conversation: str, id: str, num_tokens: int) -> File:
        """Stores how many tokens a file has."""
        with self._database.writing() as sql:
            number, _ = owned(sql, owner, conversation)
            _file(sql, number, id)
            sql.execute("UPDATE file SET num_tokens = ? WHERE id = ?", (num_tokens, id))
            return _file(sql, number, id)

    def remove(self, owner: str, conversation: str, id: str) -> None:
        """Removes a file, also from the messages that name it."""
        with self._database.writing() as sql:
            number, _ = owned(sql, owner, conversation)
            file = _file(sql, number, id)
            (document,) = sql.execute("SELECT document FROM file WHERE id = ?", (id,)).fetchone()
            remove_document(sql, number, document, file.name)
            sql.execute("DELETE FROM file WHERE id = ?", (id,))
            grow(sql, number, -EACH - file.num_bytes)
            query = "SELECT id, files FROM message WHERE conversation = ? AND files != '[]'"
            for message, files in sql.execute(query, (number,)).fetchall():
                left = [name for name in json.loads(files) if name != id]
                sql.execute("UPDATE message SET files = ? WHERE id = ?", (json.dumps(left), message))


def insert_file(sql: sqlite3.Connection, number: int, draft: FileDraft) -> File:
    """Stores a file of the conversation with this number."""
    file = File(
        id=new_id("file"),
        name=draft.name,
        media_type=draft.media_type,
        num_bytes=len(draft.text.encode()),
        num_tokens=draft.num_tokens,
        created=draft.created,
    )
    document = next_document(sql, number, file.num_bytes)
    row = (number, document, *(getattr(file, name) for name in FILE_COLUMNS.split(", ")), draft.text)
    sql.execute(
        f"INSERT INTO file (conversation, document, {FILE_COLUMNS}, text) VALUES ({', '.join('?' * len(row))})", row
    )
    add_document(sql, number, document, file.name)
    return file


def _file(sql: sqlite3.Connection, number: int, id: str) -> File:
    query = f"SELECT {FILE_COLUMNS} FROM file WHERE id = ? AND conversation = ?"
    row = sql.execute(query, (id, number)).fetchone()
    if not row:
        raise NotFound(f"The conversation has no file {id!r}", "Read the conversation again", param="file")
    return file_of(row)
