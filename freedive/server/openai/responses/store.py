"""Stored responses and their conversations, in one SQLite file of bounded size.

At the limit, the oldest response of the owner who uses the most bytes is deleted.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from freedive.errors import NotFound, Unavailable, UserError
from freedive.json_object import Json
from freedive.server.storage.database import Database, num_bytes

logger = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
"""The default limit of the file in bytes, without its write-ahead log."""

STEPS = (
    """
CREATE TABLE IF NOT EXISTS response (id TEXT PRIMARY KEY, owner TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS conversation (
    response TEXT NOT NULL REFERENCES response ON DELETE CASCADE,
    position INTEGER NOT NULL,
    item TEXT NOT NULL REFERENCES item,
    PRIMARY KEY (response, position)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS conversation_of_item ON conversation (item);
CREATE TABLE IF NOT EXISTS share (
    response TEXT PRIMARY KEY REFERENCES response ON DELETE CASCADE, owner TEXT NOT NULL, num_bytes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS share_of_owner ON share (owner, num_bytes);
""",
)
"""An item is stored once for all conversations that contain it; its size counts for the first response with it.

Files from before the steps were numbered have the tables already, or all but the last.
"""

OLDEST = """
SELECT response.id FROM response LEFT JOIN share ON share.response = response.id
WHERE share.response IS NULL
   OR share.owner = (SELECT owner FROM share GROUP BY owner ORDER BY sum(num_bytes) DESC LIMIT 1)
ORDER BY response.rowid LIMIT 1
"""
"""Selects the next response to delete: the oldest of the largest owner, or one of an earlier version without a size."""


def open_store(path: Path | None) -> Store:
    """Returns the store at ``path``; if the file cannot be used, prints why and returns a store in memory."""
    try:
        return Store(path)
    except UserError as error:
        print(f"freedive keeps responses in memory only: {error}", file=sys.stderr, flush=True)
        return Store()


class Store:
    """A store of responses, safe for several threads and processes. Only its owner can read a response.

    If ``path`` is None, the store is in memory. Raises UserError if the file cannot be used. If the disk fails later,
    new responses are logged and not stored, and reading raises Unavailable.
    """

    def __init__(self, path: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._database = Database(path, STEPS, ("Stored responses cannot be read", "Send the whole conversation"))

    def add(self, owner: str, response: Json, conversation: Sequence[Json]) -> None:
        """Stores a response with all items of its conversation, including its output; deletes old ones at the limit."""
        name = response["id"]
        uses = [(name, position, item["id"]) for position, item in enumerate(conversation)]
        try:
            with self._database.writing() as sql:
                before, written = num_bytes(sql), _json(response)
                sql.execute("INSERT INTO response VALUES (?, ?, ?)", (name, owner, written))
                bodies = ((item["id"], _json(item)) for item in conversation)
                sql.executemany("INSERT OR IGNORE INTO item VALUES (?, ?)", bodies)
                sql.executemany("INSERT INTO conversation VALUES (?, ?, ?)", uses)
                size = max(num_bytes(sql) - before, len(written))
                sql.execute("INSERT INTO share VALUES (?, ?, ?)", (name, owner, size))
                while num_bytes(sql) > self._max_bytes and (oldest := sql.execute(OLDEST).fetchone()):
                    _forget(sql, oldest[0])
        except Unavailable as error:  # the client gets the answer, although it is not stored
            logger.error("response %s is not kept: %s", name, error.__cause__)

    def response(self, name: str, owner: str, param: str = "response_id") -> Json:
        """Returns a stored response. Raises NotFound."""
        with self._database.reading() as sql:
            return _response(sql, name, owner, param)

    def conversation(self, name: str, owner: str, param: str = "response_id") -> list[Json]:
        """Returns all items up to and including the output of a response. Raises NotFound."""
        query = "SELECT body FROM conversation JOIN item ON item = item.id WHERE response = ? ORDER BY position"
        with self._database.reading() as sql:
            _response(sql, name, owner, param)
            return [json.loads(body) for (body,) in sql.execute(query, (name,))]

    def item(self, name: str, owner: str) -> Json:
        """Returns a stored item. Raises NotFound."""
        query = """
            SELECT item.body FROM item JOIN conversation ON item = item.id JOIN response ON response = response.id
            WHERE item.id = ? AND owner = ? LIMIT 1
        """
        with self._database.reading() as sql:
            found = sql.execute(query, (name, owner)).fetchone()
        if not found:
            raise NotFound(f"There is no item '{name}'", "Send the item itself", param="input")
        item: Json = json.loads(found[0])
        return item

    def delete(self, name: str, owner: str) -> None:
        """Deletes a stored response, and items that no other response has. Raises NotFound."""
        with self._database.writing() as sql:
            _response(sql, name, owner, "response_id")
            _forget(sql, name)

    def close(self) -> None:
        """Closes the file; its responses stay stored."""
        self._database.close()


def _json(value: Json) -> str:
    """Returns ``value`` as text, without escapes: they would take six times the time and bytes of most alphabets."""
    return json.dumps(value, ensure_ascii=False)


def _response(sql: sqlite3.Connection, name: str, owner: str, param: str) -> Json:
    found = sql.execute("SELECT body FROM response WHERE id = ? AND owner = ?", (name, owner)).fetchone()
    if not found:
        raise NotFound(f"There is no response '{name}'", "Send the whole conversation", param=param)
    response: Json = json.loads(found[0])
    return response


def _forget(sql: sqlite3.Connection, name: str) -> None:
    """Deletes a response, and the items that no other response has."""
    items = sql.execute("SELECT item FROM conversation WHERE response = ?", (name,)).fetchall()
    sql.execute("DELETE FROM response WHERE id = ?", (name,))
    unused = "DELETE FROM item WHERE id = ? AND NOT EXISTS (SELECT 1 FROM conversation WHERE item = item.id)"
    sql.executemany(unused, items)
