"""The schema of a database has numbered steps: older files are migrated whole or not at all, newer ones refused."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from freedive.errors import Unavailable, UserError
from freedive.server.openai.responses.items import message
from freedive.server.openai.responses.store import Store
from freedive.server.storage.database import Database
from freedive.server.storage.presence import Presence

FAILURE = ("It cannot be read", "Look at the disk")
FIRST = "CREATE TABLE a (x TEXT);\nCREATE TRIGGER t AFTER INSERT ON a BEGIN\n  DELETE FROM a WHERE x = 'gone';\nEND;\n"
SECOND = "ALTER TABLE a ADD COLUMN y TEXT;\nUPDATE a SET y = x || '; two';\n"


def rows(database: Database) -> list[tuple[object, ...]]:
    with database.reading() as sql:
        return sql.execute("SELECT * FROM a").fetchall()


def test_an_older_file_gets_the_steps_that_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    first = Database(path, [FIRST], FAILURE)
    with first.writing() as sql:
        sql.executemany("INSERT INTO a VALUES (?)", [("one",), ("gone",)])
    first.close()
    second = Database(path, [FIRST, SECOND], FAILURE)
    assert rows(second) == [("one", "one; two")]
    second.close()
    again = Database(path, [FIRST, SECOND], FAILURE)
    assert rows(again) == [("one", "one; two")]
    again.close()


def test_a_newer_file_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    Database(path, [FIRST, SECOND], FAILURE).close()
    with pytest.raises(UserError, match="later version of freedive"):
        Database(path, [FIRST], FAILURE)
    Database(path, [FIRST, SECOND], FAILURE).close()


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    first = Database(path, [FIRST], FAILURE)
    with first.writing() as sql:
        sql.execute("INSERT INTO a VALUES ('one')")
    first.close()
    with pytest.raises(UserError, match="cannot be used"):
        Database(path, [FIRST, SECOND, "INSERT INTO nothing VALUES (1);\n"], FAILURE)
    again = Database(path, [FIRST], FAILURE)
    assert rows(again) == [("one",)]
    again.close()


def test_a_transaction_that_raises_is_undone() -> None:
    database = Database(None, [FIRST], FAILURE)

    def insert(table: str, value: str) -> None:
        with database.writing() as sql:
            sql.execute("INSERT INTO a VALUES ('one')")
            sql.execute(f"INSERT INTO {table} VALUES (?)", (value,))

    with pytest.raises(UnicodeEncodeError):
        insert("a", "\ud800")
    with pytest.raises(Unavailable, match="It cannot be read"):
        insert("nothing", "one")
    assert rows(database) == []


def test_threads_take_turns(tmp_path: Path) -> None:
    database = Database(
        tmp_path / "x.sqlite", ["CREATE TABLE a (x INTEGER);\n", "INSERT INTO a VALUES (0);\n"], FAILURE
    )

    def count() -> None:
        for _ in range(50):
            with database.writing() as sql:
                (value,) = sql.execute("SELECT x FROM a").fetchone()
                sql.execute("UPDATE a SET x = ?", (value + 1,))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(database) == [(200,)]
    database.close()


OLD_RESPONSES = """
PRAGMA journal_mode = WAL;
CREATE TABLE response (id TEXT PRIMARY KEY, owner TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE item (id TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE conversation (
    response TEXT NOT NULL REFERENCES response ON DELETE CASCADE,
    position INTEGER NOT NULL,
    item TEXT NOT NULL REFERENCES item,
    PRIMARY KEY (response, position)
) WITHOUT ROWID;
CREATE INDEX conversation_of_item ON conversation (item);
CREATE TABLE share (
    response TEXT PRIMARY KEY REFERENCES response ON DELETE CASCADE, owner TEXT NOT NULL, num_bytes INTEGER NOT NULL
);
CREATE INDEX share_of_owner ON share (owner, num_bytes);
INSERT INTO response VALUES ('resp_1', 'ann', '{"id": "resp_1"}');
INSERT INTO item VALUES ('msg_1', '{"id": "msg_1", "text": "hello"}');
INSERT INTO conversation VALUES ('resp_1', 0, 'msg_1');
INSERT INTO share VALUES ('resp_1', 'ann', 4096);
"""


def test_stored_responses_from_before_the_steps_were_numbered_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD_RESPONSES)
    connection.close()
    store = Store(path)
    assert store.response("resp_1", "ann") == {"id": "resp_1"}
    assert store.conversation("resp_1", "ann") == [{"id": "msg_1", "text": "hello"}]
    store.add("ann", {"id": "resp_2"}, [*store.conversation("resp_1", "ann"), message("user", ["more"])])
    store.delete("resp_1", "ann")
    assert len(store.conversation("resp_2", "ann")) == 2
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


def test_only_the_first_process_at_a_file_is_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with Presence(path) as first:
        assert first.alone
    with Presence(path) as second:
        assert not second.alone
    first.close()
    second.close()
    with Presence(path) as third:
        assert third.alone
    third.close()
