"""Requests that a server records: only if configured, for their own key alone, and only the latest ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving
from patience import wait_until

from freedive.config import ServerConfig
from freedive.engine.recording import Recording
from freedive.server import app, kept_requests, keys
from freedive.server.kept_requests import KeptRequests
from freedive.server.keys import Keys


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, so that the tests' keys are separate."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))


CHAT = "/v1/chat/completions"


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]} | fields


@contextmanager
def clients_of(limit: int, *names: str) -> Iterator[dict[str, httpx.Client]]:
    """Yields a client for each key, or one without."""
    headers = {name: {"authorization": f"Bearer {keys.create(name, may=('manage',))}"} for name in names} or {"": {}}
    with serving(EchoModel(), config=ServerConfig(keep_requests=limit), keys=Keys() if names else None) as url:
        clients = {name: httpx.Client(base_url=url, headers=each, timeout=20) for name, each in headers.items()}
        try:
            yield clients
        finally:
            for client in clients.values():
                client.close()


def recording(client: httpx.Client, id: str) -> Recording:
    """Returns a recording, which is available a moment after the answer was read."""
    path = f"/v1/requests/{id}"
    wait_until(lambda: client.get(path).status_code == 200, lambda: client.get(path).text)
    return Recording.from_json(client.get(path).content)


def test_nothing_is_recorded_unless_configured() -> None:
    with clients_of(0) as clients:
        id = clients[""].post(CHAT, json=body("hello")).headers["x-request-id"]
        assert clients[""].get("/v1/requests").json()["data"] == []
        answer = clients[""].get(f"/v1/requests/{id}")
        assert (answer.status_code, "--keep-requests" in answer.text) == (404, True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_recorded_with_its_answers(stream: bool) -> None:
    with clients_of(3) as clients:
        made = clients[""].post(CHAT, json=body("hello", stream=stream, n=2, seed=5, top_p=0.5, stop=["zzz"]))
        kept = recording(clients[""], made.headers["x-request-id"])
        [shown] = clients[""].get("/v1/requests").json()["data"]
    assert kept.request.inputs[0].messages == ({"role": "user", "content": "hello"},)
    assert (kept.request.n, kept.request.sampling["top_p"], kept.request.sampling["stop"]) == (2, 0.5, ("zzz",))
    assert ["".join(map(chr, answer.token_ids)) for answer in kept.answers] == ["user: hello"] * 2
    assert [(answer.seed, answer.finish_reason) for answer in kept.answers] == [(5, "stop"), (6, "stop")]
    assert kept.made_by == {"code": "echo"}
    assert "hello" not in str(shown)
    assert (shown["model"], shown["route"], shown["answers"], shown["generated_tokens"]) == ("echo", CHAT, 2, 22)


def test_only_the_latest_requests_are_kept() -> None:
    with clients_of(2) as clients:
        ids = [clients[""].post(CHAT, json=body(text)).headers["x-request-id"] for text in ("one", "two", "three")]
        assert recording(clients[""], ids[2])
        assert [each["id"] for each in clients[""].get("/v1/requests").json()["data"]] == ids[:0:-1]
        assert clients[""].get(f"/v1/requests/{ids[0]}").status_code == 404


def test_kept_requests_of_a_key_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_requests, "KEPT_BYTES", 10_000)
    with clients_of(9, "ann", "bob") as clients:
        first = clients["bob"].post(CHAT, json=body("mine")).headers["x-request-id"]
        assert recording(clients["bob"], first)
        sizes = [100, 3000, 3000, 3000, 11_000, 7]
        ids = [clients["ann"].post(CHAT, json=body("x" * size, max_tokens=1)).headers["x-request-id"] for size in sizes]
        assert recording(clients["ann"], ids[5])
        kept = [each["id"] for each in clients["ann"].get("/v1/requests").json()["data"]]
        assert kept == [ids[5], ids[3], ids[2]]
        assert sum(len(clients["ann"].get(f"/v1/requests/{id}").content) for id in kept) <= 10_000
        assert recording(clients["bob"], first)


def test_no_key_sees_the_requests_of_another() -> None:
    with clients_of(5, "ann", "bob") as clients:
        id = clients["ann"].post(CHAT, json=body("secret"), headers={"x-request-id": "mine"}).headers["x-request-id"]
        assert id == "mine"
        assert clients["bob"].get("/v1/requests").json()["data"] == []
        assert clients["bob"].get("/v1/requests/mine").status_code == 404
        assert recording(clients["ann"], "mine").answers
        for _ in range(6):
            clients["bob"].post(CHAT, json=body("hello"))
        assert recording(clients["ann"], "mine").answers
        assert httpx.get(f"{clients['ann'].base_url}/v1/requests").status_code == 401


def test_requests_of_a_revoked_key_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[KeptRequests] = []

    class Watched(KeptRequests):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(app, "KeptRequests", Watched)
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    with clients_of(5, "ann", "bob") as clients:
        for client in clients.values():
            assert recording(client, client.post(CHAT, json=body("secret")).headers["x-request-id"])
        ids = {key.name: key.id for key in keys.read_keys(keys.key_file())}
        with clients["ann"].stream("POST", CHAT, json=body("secret" * 100, stream=True)) as answer:
            lines = answer.iter_lines()
            next(lines)
            keys.revoke("ann")
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert len(clients["bob"].get("/v1/requests").json()["data"]) == 1
        wait_until(lambda: not made[0].of(ids["ann"]))
        assert len(made[0].of(ids["bob"])) == 1


def test_requests_of_all_apis_are_recorded_unless_they_have_no_answer() -> None:
    with clients_of(9) as clients:
        client = clients[""]
        client.post("/v1/completions", json={"model": "echo", "prompt": ["a", "b"], "max_tokens": 1})
        client.post("/api/generate", json={"model": "echo", "prompt": "c", "stream": False})
        client.post("/v1/messages", json=body("d", max_tokens=9))
        client.post("/v1/embeddings", json={"model": "echo", "input": "f"})
        client.post(CHAT, json=body("\N{COLLISION SYMBOL}"))
        client.post(CHAT, json=body("overload"))
        last = client.post("/v1/responses", json={"model": "echo", "input": "e"})
        assert recording(client, last.headers["x-request-id"])
        kept = client.get("/v1/requests").json()["data"]
        routes = [each["route"] for each in kept]
        assert routes == ["/v1/responses", "/v1/messages", "/api/generate", "/v1/completions"]
        assert [answer.token_ids for answer in recording(client, kept[-1]["id"]).answers] == [(97,), (98,)]
