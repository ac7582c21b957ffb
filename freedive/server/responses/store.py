"""Responses that are kept, and the conversations that led to them: one SQLite file, bounded, oldest first out."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freedive.errors import NotFound, Unavailable, UserError

Json = dict[str, Any]

MAX_BYTES = 64 << 20
"""Of the file, but for the journal beside it."""

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS response (id TEXT PRIMARY KEY, owner TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS conversation (
    response TEXT NOT NULL REFERENCES response ON DELETE CASCADE,
    position INTEGER NOT NULL,
    item TEXT NOT NULL REFERENCES item,
    PRIMARY KEY (response, position)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS conversation_of_item ON conversation (item);
"""
"""An item is there once, however many responses have it in their conversations."""


class Store:
    """Safe to use from several threads and processes. Every response has an owner, who alone can see it.

    Without a ``path`` it lives in memory. Raises UserError for a file that is none of ours, and Unavailable, from every
    method, when the disk fails.
    """

    def __init__(self, path: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
        self._connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
        try:
            self._connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            self._connection.close()
            raise UserError(f"{path} cannot be used ({error})", "Move it away") from error

    def add(self, owner: str, response: Json, conversation: Sequence[Json]) -> None:
        """Keep a response, and all items up to and with its output; forget as many old ones as must make room."""
        name = response["id"]
        uses = [(name, position, item["id"]) for position, item in enumerate(conversation)]
        with self._transaction() as sql:
            sql.execute("INSERT INTO response VALUES (?, ?, ?)", (name, owner, json.dumps(response)))
            bodies = ((item["id"], json.dumps(item)) for item in conversation)
            sql.executemany("INSERT OR IGNORE INTO item VALUES (?, ?)", bodies)
            sql.executemany("INSERT INTO conversation VALUES (?, ?, ?)", uses)
            while self._num_bytes(sql) > self._max_bytes:
                oldest = sql.execute("SELECT id FROM response ORDER BY rowid LIMIT 1").fetchone()
                if not oldest:
                    break
                _forget(sql, oldest[0])

    def response(self, name: str, owner: str, param: str = "response_id") -> Json:
        """Raises NotFound."""
        with self._transaction() as sql:
            return _response(sql, name, owner, param)

    def conversation(self, name: str, owner: str, param: str = "response_id") -> list[Json]:
        """Everything up to and with the output of a response. Raises NotFound."""
        query = "SELECT body FROM conversation JOIN item ON item = item.id WHERE response = ? ORDER BY position"
        with self._transaction() as sql:
            _response(sql, name, owner, param)
            return [json.loads(body) for (body,) in sql.execute(query, (name,))]

    def item(self, name: str, owner: str) -> Json:
        """Raises NotFound."""
        query = """
            SELECT item.body FROM item JOIN conversation ON item = item.id JOIN response ON response = response.id
            WHERE item.id = ? AND owner = ? LIMIT 1
        """
        with self._transaction() as sql:
            found = sql.execute(query, (name, owner)).fetchone()
        if not found:
            raise NotFound(f"there is no item '{name}'", "Send the item itself", param="input")
        item: Json = json.loads(found[0])
        return item

    def delete(self, name: str, owner: str) -> None:
        """Raises NotFound."""
        with self._transaction() as sql:
            _response(sql, name, owner, "response_id")
            _forget(sql, name)

    def close(self) -> None:
        """What was kept stays on disk."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        try:
            with self._lock, self._connection:
                yield self._connection
        except sqlite3.Error as error:
            raise Unavailable(f"stored responses cannot be reached ({error})", "Ask with 'store': false") from error

    def _num_bytes(self, sql: sqlite3.Connection) -> int:
        pages, free, size = (
            sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def _response(sql: sqlite3.Connection, name: str, owner: str, param: str) -> Json:
    found = sql.execute("SELECT body FROM response WHERE id = ? AND owner = ?", (name, owner)).fetchone()
    if not found:
        raise NotFound(f"there is no response '{name}'", "It was not stored, or is too old", param=param)
    response: Json = json.loads(found[0])
    return response


def _forget(sql: sqlite3.Connection, name: str) -> None:
    """A response, and the items that no other one has."""
    items = sql.execute("SELECT item FROM conversation WHERE response = ?", (name,)).fetchall()
    sql.execute("DELETE FROM response WHERE id = ?", (name,))
    unused = "DELETE FROM item WHERE id = ? AND NOT EXISTS (SELECT 1 FROM conversation WHERE item = item.id)"
    sql.executemany(unused, items)
