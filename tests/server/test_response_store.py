"""Stored responses: their owners', bounded, whole, and there again after a restart."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from echo_model import EchoModel, served
from fastapi.testclient import TestClient

from freedive.errors import NotFound, Unavailable, UserError
from freedive.server import keys
from freedive.server.app import create_app
from freedive.server.responses.items import message
from freedive.server.responses.store import Store

Json = dict[str, Any]


def turn(store: Store, name: str, text: str, earlier: list[Json] | None = None, owner: str = "") -> list[Json]:
    """One question and its answer, kept under ``name``: the conversation so far."""
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


def test_nobody_sees_what_another_stored() -> None:
    store = Store()
    conversation = turn(store, "resp_1", "secret", owner="ann")
    for look in (store.response, store.conversation, store.delete):
        with pytest.raises(NotFound, match="resp_1"):
            look("resp_1", "bob")
    with pytest.raises(NotFound):
        store.item(conversation[0]["id"], "bob")
    assert store.conversation("resp_1", "ann") == conversation


def test_callers_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_is_deleted_stays_only_in_what_came_after() -> None:
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


def test_the_oldest_make_room(tmp_path: Path) -> None:
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


def test_what_cannot_be_kept_whole_is_not_kept_at_all() -> None:
    store = Store()
    with pytest.raises(Unavailable, match="'store': false"):
        store.add("", {"id": "resp_1"}, [{"id": "msg_1"}, {"id": None}])
    assert not has(store, "resp_1")
    with pytest.raises(NotFound):
        store.item("msg_1", "")
    huge = Store(max_bytes=1 << 16)
    turn(huge, "resp_1", "x" * (1 << 17))
    assert not has(huge, "resp_1")


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    path.write_text("My diary, which is no database. " * 100)
    with pytest.raises(UserError, match="Move it away"):
        Store(path)
    assert path.read_text().startswith("My diary")
