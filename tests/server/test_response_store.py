"""Stored responses: separate by owner, bounded, complete, and restored after a restart."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, served, serving
from fastapi.testclient import TestClient

from freedive.errors import NotFound, UserError
from freedive.server import keys
from freedive.server.app import create_app
from freedive.server.openai.responses.items import message
from freedive.server.openai.responses.store import Store

Json = dict[str, Any]


def turn(store: Store, name: str, text: str, earlier: list[Json] | None = None, owner: str = "") -> list[Json]:
    """Stores one question and its answer under ``name``; returns the conversation so far."""
    conversation = [*(earlier or []), message("user", [text]), message("assistant", [text.upper()])]
    store.add(owner, {"id": name, "output": conversation[-1:]}, conversation)
    return conversation


def test_a_conversation_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "responses.sqlite"
    store = Store(path)
    conversation = turn(store, "resp_2", "two", turn(store, "resp_1", "one"))
    store.close()
    store = Store(path)
    assert store.conversation("resp_2", "") == conversation
    assert store.response("resp_2", "") == {"id": "resp_2", "output": conversation[-1:]}
    assert store.item(conversation[0]["id"], "") == conversation[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.close()


def test_no_key_sees_the_responses_of_another() -> None:
    store = Store()
    conversation = turn(store, "resp_1", "secret", owner="ann")
    for look in (store.response, store.conversation, store.delete):
        with pytest.raises(NotFound, match="resp_1"):
            look("resp_1", "bob")
    with pytest.raises(NotFound):
        store.item(conversation[0]["id"], "bob")
    assert store.conversation("resp_1", "ann") == conversation


def test_callers_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    ann, bob = ({"authorization": f"Bearer {keys.create(name)}"} for name in ("ann", "bob"))
    with TestClient(create_app(served(EchoModel()), keys=keys.Keys())) as http:
        name = http.post("/v1/responses", json={"model": "echo", "input": "secret"}, headers=ann).json()["id"]
        assert http.get(f"/v1/responses/{name}", headers=ann).status_code == 200
        assert http.get(f"/v1/responses/{name}", headers=bob).status_code == 404
        assert http.get(f"/v1/responses/{name}/input_items", headers=bob).status_code == 404
        more = {"model": "echo", "input": "what was it?", "previous_response_id": name}
        assert http.post("/v1/responses", json=more, headers=bob).status_code == 404
        assert http.post("/v1/responses", json=more, headers=ann).status_code == 200


def test_a_deleted_response_remains_only_in_later_ones() -> None:
    store = Store()
    first = turn(store, "resp_1", "one")
    second = turn(store, "resp_2", "two", first)
    store.delete("resp_1", "")
    with pytest.raises(NotFound):
        store.response("resp_1", "")
    assert store.conversation("resp_2", "") == second
    store.delete("resp_2", "")
    with pytest.raises(NotFound):
        store.item(first[0]["id"], "")


def test_the_oldest_responses_are_deleted_first(tmp_path: Path) -> None:
    path, max_bytes = tmp_path / "responses.sqlite", 1 << 20
    store = Store(path, max_bytes=max_bytes)
    for number in range(60):
        turn(store, f"resp_{number}", f"{number} " * 20_000)
    kept = [number for number in range(60) if has(store, f"resp_{number}")]
    assert kept == list(range(kept[0], 60))
    assert 1 <= len(kept) < 30
    store.close()
    assert path.stat().st_size < 2 * max_bytes


def has(store: Store, name: str) -> bool:
    try:
        return bool(store.response(name, ""))
    except NotFound:
        return False


def test_a_response_that_is_too_large_is_not_stored() -> None:
    store = Store()
    store.add("", {"id": "resp_1"}, [{"id": "msg_1"}, {"id": None}])
    assert not has(store, "resp_1")
    with pytest.raises(NotFound):
        store.item("msg_1", "")
    huge = Store(max_bytes=1 << 16)
    turn(huge, "resp_1", "x" * (1 << 17))
    assert not has(huge, "resp_1")


def test_an_owner_displaces_only_his_own_responses() -> None:
    store = Store(max_bytes=1 << 20)
    turn(store, "resp_of_ann", "a" * 100_000, owner="ann")
    for number in range(60):
        turn(store, f"resp_{number}", f"{number} " * 20_000, owner="bob")
    assert store.response("resp_of_ann", "ann")
    assert store.response("resp_59", "bob")
    with pytest.raises(NotFound):
        store.response("resp_0", "bob")


def test_a_store_of_an_earlier_version_is_read_and_its_responses_are_deleted_first(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    store = Store(path)
    turn(store, "resp_old", "x" * 100_000)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TABLE share; PRAGMA user_version = 0")
    store = Store(path, max_bytes=1 << 20)
    assert has(store, "resp_old")
    for number in range(10):
        turn(store, f"resp_{number}", f"{number} " * 60_000)
    assert not has(store, "resp_old")
    store.close()


def a_folder(path: Path) -> None:
    (path / "responses.sqlite").mkdir()


def something_else(path: Path) -> None:
    (path / "responses.sqlite").write_text("My diary, which is no database. " * 100)


def a_file_as_home(path: Path) -> None:
    path.rmdir()
    path.write_text("not a folder")


@pytest.mark.parametrize("spoil", [a_folder, something_else, a_file_as_home])
def test_a_store_that_cannot_be_opened_is_reported_and_replaced_by_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    spoil(home)
    with serving(EchoModel(), stored_responses=home / "responses.sqlite") as url:
        assert "keeps responses in memory only" in capsys.readouterr().err
        name = httpx.post(f"{url}/v1/responses", json={"model": "echo", "input": "hello"}).json()["id"]
        assert httpx.get(f"{url}/v1/responses/{name}").json()["id"] == name


def test_an_answer_arrives_even_if_it_cannot_be_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "responses.sqlite"
    with serving(EchoModel(), stored_responses=path) as url:
        with sqlite3.connect(path) as connection:
            connection.executescript("DROP TABLE conversation; DROP TABLE item; CREATE TABLE item (id)")
        answer = httpx.post(f"{url}/v1/responses", json={"model": "echo", "input": "hello"})
        assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert "is not kept" in caplog.text


def test_a_new_key_with_an_old_name_reads_nothing_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    headers = {"authorization": f"Bearer {keys.create('ann')}"}
    with serving(EchoModel(), keys=keys.Keys()) as url:
        name = httpx.post(f"{url}/v1/responses", json={"model": "echo", "input": "hello"}, headers=headers).json()["id"]
        assert httpx.get(f"{url}/v1/responses/{name}", headers=headers).status_code == 200
        keys.revoke("ann")
        headers = {"authorization": f"Bearer {keys.create('ann')}"}
        assert httpx.get(f"{url}/v1/responses/{name}", headers=headers).status_code == 404


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    path.write_text("My diary, which is no database. " * 100)
    with pytest.raises(UserError, match="Move it away"):
        Store(path)
    assert path.read_text().startswith("My diary")
