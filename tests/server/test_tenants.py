"""Tenants: users and salts are separate for each key, and rights of keys are enforced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving

from freedive.config import ServerConfig
from freedive.server import keys
from freedive.server.keys import Keys
from freedive.server.library.line import Progress
from freedive.server.models import ModelEntry

HELLO = [{"role": "user", "content": "hello"}]
ASKING = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/api/chat": {"messages": HELLO, "stream": False},
    "/api/generate": {"prompt": "hello", "stream": False},
    "/api/embed": {"input": "hello"},
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    return tmp_path


class TenantServer:
    """A server with two keys that may only send requests, and one with all rights."""

    def __init__(self, url: str, model: EchoModel, headers: dict[str, dict[str, str]]) -> None:
        self.url, self.model, self.headers = url, model, headers
        self.ids = {key.name: key.id for key in keys.read_keys(keys.key_file())}

    def get(self, route: str, who: str = "") -> httpx.Response:
        return httpx.get(f"{self.url}{route}", headers=self.headers.get(who))

    def post(self, route: str, who: str = "", **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{route}", json={"model": "echo"} | body, headers=self.headers.get(who))


def fetch(name: str, progress: Progress) -> ModelEntry:
    return ModelEntry(name, lambda: EchoModel(name=name))


@pytest.fixture
def tenants() -> Iterator[TenantServer]:
    rights = {"ann": (), "bob": (), "boss": ("pull", "manage")}
    headers = {name: {"authorization": f"Bearer {keys.create(name, may=may)}"} for name, may in rights.items()}
    model = EchoModel()
    with serving(model, keys=Keys(), fetch=fetch) as url:
        yield TenantServer(url, model, headers)


@pytest.mark.parametrize("route", ASKING)
def test_every_route_submits_requests_for_the_key(tenants: TenantServer, route: str) -> None:
    for name in ("ann", "bob"):
        assert tenants.post(route, name, **ASKING[route]).status_code == 200
        assert tenants.model.engine.generations[-1].submitted["tenant"] == tenants.ids[name]


def test_users_and_salts_of_clients_are_separate_for_each_key(tenants: TenantServer) -> None:
    words = [("/v1/chat/completions", {"user_id": "u"}), ("/v1/embeddings", {"user_id": "u"})]
    for route, field in words:
        tenants.post(route, "ann", **ASKING[route], **field)
        submitted = tenants.model.engine.generations[-1].submitted
        assert (submitted["tenant"], submitted["user"], submitted["cache_salt"]) == (tenants.ids["ann"], "u", "u")
    tenants.post("/v1/responses", "ann", input="hello", user="u")
    tenants.post("/v1/messages", "ann", **ASKING["/v1/messages"], metadata={"user_id": "u"})
    assert [made.submitted["user"] for made in tenants.model.engine.generations[-2:]] == ["u", "u"]


def test_a_slow_format_delays_no_other_request(tenants: TenantServer, monkeypatch: Any) -> None:
    """It delays neither requests of other keys nor requests of the same key without a format."""
    prepared, question = threading.Event(), tenants.model.prepare

    def slow(asked: Any) -> Any:
        if asked.messages[-1]["content"] == "slow":
            assert prepared.wait(20)
        return question(asked)

    monkeypatch.setattr(tenants.model, "prepare", slow)
    form = {"response_format": {"type": "json_object"}}
    hard = [{"role": "user", "content": "slow"}]
    asking = [
        threading.Thread(target=tenants.post, args=("/v1/chat/completions", "ann"), kwargs={"messages": hard} | form)
        for _ in range(8)
    ]
    for thread in asking:
        thread.start()
    try:
        for who, extra in (("bob", {}), ("bob", form), ("ann", {})):
            answer = tenants.post("/v1/chat/completions", who, messages=HELLO, **extra)
            assert answer.status_code == 200
    finally:
        prepared.set()
        for thread in asking:
            thread.join()


def test_a_waiting_request_of_a_disconnected_client_is_never_started(tenants: TenantServer, monkeypatch: Any) -> None:
    begun, question = [], tenants.model.prepare
    prepared = threading.Event()

    def slow(asked: Any) -> Any:
        begun.append(asked.messages[-1]["content"])
        assert prepared.wait(20)
        return question(asked)

    monkeypatch.setattr(tenants.model, "prepare", slow)
    body = {"model": "echo", "response_format": {"type": "json_object"}}

    def ask(text: str, timeout: float) -> None:
        message = [{"role": "user", "content": text}]
        with contextlib.suppress(httpx.TimeoutException):
            url = f"{tenants.url}/v1/chat/completions"
            httpx.post(url, json=body | {"messages": message}, headers=tenants.headers["ann"], timeout=timeout)

    first = threading.Thread(target=ask, args=("first", 20))
    first.start()
    while not begun:
        time.sleep(0.01)
    for _ in range(3):
        ask("left", 0.1)
    for _ in range(3):  # until the server has read that they left, since it reads in the order of arrival
        httpx.get(f"{tenants.url}/health", timeout=20)
    prepared.set()
    first.join()
    ask("last", 20)
    assert begun == ["first", "last"]


def test_a_key_sees_only_its_own_statistics(tenants: TenantServer) -> None:
    tenants.post("/v1/chat/completions", "ann", messages=HELLO)
    stats = {name: tenants.get("/v1/stats", name).json() for name in ("ann", "bob", "boss")}
    assert stats["ann"]["callers"].keys() == {"ann"}
    assert stats["ann"]["latencies"]["request_s"]
    assert stats["bob"]["callers"] == {}
    assert stats["bob"]["latencies"]["request_s"] == {}
    assert stats["boss"]["callers"] == stats["ann"]["callers"]
    assert (stats["bob"]["models"], stats["boss"]["models"].keys()) == ({}, {"echo"})


def test_a_new_key_with_an_old_name_sees_no_old_statistics(tenants: TenantServer) -> None:
    tenants.post("/v1/chat/completions", "ann", messages=HELLO)
    keys.revoke("ann")
    tenants.headers["ann"] = {"authorization": f"Bearer {keys.create('ann')}"}
    assert tenants.get("/v1/stats", "ann").json()["callers"] == {}


@pytest.mark.parametrize("route", ["/metrics", "/v1/stats/experts"])
def test_statistics_of_all_callers_need_the_right_to_manage(tenants: TenantServer, route: str) -> None:
    refused = tenants.get(route, "ann")
    assert refused.status_code == 403
    assert "--may manage" in refused.json()["error"]["message"]
    assert tenants.get(route, "boss").status_code == 200


def test_health_without_the_right_to_manage_only_reports_that_the_server_is_up(tenants: TenantServer) -> None:
    assert tenants.get("/health").json() == tenants.get("/health", "ann").json() == {"status": "ok"}
    wrong = httpx.get(f"{tenants.url}/health", headers={"authorization": "Bearer dummy"})
    assert (wrong.status_code, wrong.json()) == (200, {"status": "ok"})
    assert tenants.get("/health", "boss").json()["models"].keys() == {"echo"}
    with serving(EchoModel()) as url:
        assert httpx.get(f"{url}/health").json()["models"].keys() == {"echo"}


def test_only_a_key_with_the_right_to_pull_fetches_new_models(tenants: TenantServer) -> None:
    for stream in (True, False):
        refused = tenants.post("/api/pull", "ann", model="new", stream=stream)
        assert refused.status_code == 403
        assert "--may pull" in refused.json()["error"]
        assert tenants.post("/api/pull", "ann", model="echo", stream=stream).status_code == 200
    assert tenants.post("/api/pull", "boss", model="new", stream=False).status_code == 200
    assert tenants.post("/v1/completions", "ann", model="new", prompt="hi").status_code == 200


def test_only_a_key_that_may_manage_unloads_and_pins(tenants: TenantServer) -> None:
    refused = tenants.post("/api/generate", "ann", keep_alive=0)
    assert refused.status_code == 403
    assert not tenants.model.closed
    for keep_alive in (0, -1, "1h"):
        assert tenants.post("/api/chat", "ann", messages=HELLO, keep_alive=keep_alive, stream=False).status_code == 200
        assert tenants.post("/api/embed", "ann", input="hi", keep_alive=keep_alive).status_code == 200
    [running] = tenants.get("/api/ps", "ann").json()["models"]
    assert running["expires_at"].startswith("9999"), "as the operator has it"
    assert tenants.post("/api/generate", "boss", keep_alive=0).json()["done_reason"] == "unload"
    assert tenants.model.closed


@pytest.mark.parametrize(
    ("config", "status"),
    [
        (ServerConfig(), 200),
        (ServerConfig(host="0.0.0.0", insecure=True), 403),
        (ServerConfig(host="0.0.0.0", insecure=True, pull=True), 200),
    ],
)
def test_without_keys_this_machine_pulls_and_others_only_where_that_is_allowed(
    config: ServerConfig, status: int
) -> None:
    with serving(EchoModel(), config=config, fetch=fetch) as url:
        assert httpx.post(f"{url}/api/pull", json={"model": "new", "stream": False}).status_code == status


def test_a_server_with_keys_lets_no_key_pull_for_the_flag(tenants: TenantServer) -> None:
    with serving(EchoModel(), config=ServerConfig(pull=True), keys=Keys(), fetch=fetch) as url:
        body = {"model": "new", "stream": False}
        assert httpx.post(f"{url}/api/pull", json=body, headers=tenants.headers["ann"]).status_code == 403


def test_downloads_of_a_server_wait_for_each_other() -> None:
    running, most = [], []

    def slow(name: str, progress: Progress) -> ModelEntry:
        running.append(name)
        most.append(len(running))
        threading.Event().wait(0.05)
        running.remove(name)
        return fetch(name, progress)

    with serving(EchoModel(), fetch=slow) as url:
        threads = [
            threading.Thread(target=httpx.post, args=(f"{url}/api/pull",), kwargs={"json": {"model": name}})
            for name in ("a", "b", "a", "c")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [model["name"] for model in httpx.get(f"{url}/api/tags").json()["models"]]
    assert most == [1, 1, 1], "and a model that has come meanwhile is not fetched again"
    assert sorted(names) == ["a", "b", "c", "echo"]


def test_the_error_of_a_store_shows_no_path(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    with serving(EchoModel(), stored_responses=path) as url:
        path.write_bytes(b"x" * (1 << 16))
        answer = httpx.get(f"{url}/v1/responses/resp_1")
    assert str(tmp_path) not in answer.text


def test_a_server_runs_without_writable_stores(home: Path) -> None:
    """For root, a file in place of a folder has the effect of a read-only home."""
    environment = os.environ | {"FREEDIVE_HOME": str(home), "FREEDIVE_PAGES": str(home / "pages")}
    assert freedive_says("run", "nano", "What is 1 + 2?", environment=environment)  # packs the model
    (home / "responses.sqlite").mkdir()
    for name in ("pages", "locks", "models"):
        shutil.rmtree(home / name, ignore_errors=True)
        (home / name).write_text("")
    command = [sys.executable, "-m", "freedive", "serve", "nano", "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            said = [process.stderr.readline() for _ in range(2)]
            assert "keeps responses in memory only" in said[0]
            url = said[1].partition("chat at ")[2].partition(",")[0]
            body = {"model": "nano", "input": "What is 12 + 30?" * 20, "max_output_tokens": 9}
            answer = httpx.post(f"{url}/v1/responses", json=body, timeout=60)
            assert answer.status_code == 200
            assert httpx.get(f"{url}/v1/responses/{answer.json()['id']}").status_code == 200
        finally:
            process.terminate()
            process.communicate(timeout=30)


def freedive_says(*arguments: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "freedive", *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_key_file_of_an_earlier_version_is_read(home: Path) -> None:
    secret = keys.create("ann")
    table = json.loads((home / "keys.json").read_text())
    del table["keys"][0]["may"], table["required"]
    (home / "keys.json").write_text(json.dumps(table))
    assert Keys().required
    assert (key := Keys().holder(secret))
    assert (key.name, key.may) == ("ann", ())
