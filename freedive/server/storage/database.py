"""One SQLite file with a numbered schema, shared by several threads and processes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from freedive.errors import Unavailable, UserError

SETTINGS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA foreign_keys = ON;
"""
"""In this mode a commit survives the end of the process at any moment; a power cut may lose the last commits."""


class Database:
    """An SQLite database, in the file ``path`` or in memory if that is None, safe for several threads and processes.

    ``steps`` are SQL scripts. The file's ``user_version`` is the number of steps that have run on it; the others run
    when it is opened, in one transaction. ``failure`` is the sentence and the remedy of the Unavailable error that is
    raised if the disk fails later. Raises UserError if the file cannot be used or was written by a later version.
    """

    def __init__(self, path: Path | None, steps: Sequence[str], failure: tuple[str, str]) -> None:
        self._lock = threading.Lock()
        self._failure = failure
        try:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(0o600)
            self._connection = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from error
        try:
            self._connection.executescript(SETTINGS)
            with self._transaction("IMMEDIATE") as sql:  # raises if the file cannot be written
                _migrate(sql, path, steps)
        except sqlite3.Error as error:
            self._connection.close()
            raise _unusable(path, error) from error
        except UserError:
            self._connection.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Runs the block on one state of the database. Raises Unavailable if the disk fails."""
        with self._reporting(), self._transaction("DEFERRED") as sql:
            yield sql

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Runs the block in one transaction, undone if it raises. Raises Unavailable if the disk fails."""
        with self._reporting(), self._transaction("IMMEDIATE") as sql:
            yield sql

    def close(self) -> None:
        """Closes the file, after a transaction that runs."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Unavailable(*self._failure) from error

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself ends it after some errors
                    self._connection.execute("ROLLBACK")
                raise


def num_bytes(sql: sqlite3.Connection) -> int:
    """Returns the bytes in use in a database, without free pages and without its write-ahead log."""
    pages, free, size = (
        sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _migrate(sql: sqlite3.Connection, path: Path | None, steps: Sequence[str]) -> None:
    (version,) = sql.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        what = f"{path} was written by a later version of freedive (schema {version}; this one knows {len(steps)})"
        raise UserError(what, "Update freedive, or move the file away")
    for step in steps[version:]:
        for statement in _statements(step):
            sql.execute(statement)
    if version < len(steps):
        sql.execute(f"PRAGMA user_version = {len(steps)}")


def _statements(script: str) -> Iterator[str]:
    """Yields the statements of a script: sqlite3's own executescript would end the transaction first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), statement


def _unusable(path: Path | None, error: Exception) -> UserError:
    return UserError(f"{path} cannot be used ({error})", "Move it away, or set FREEDIVE_HOME")
