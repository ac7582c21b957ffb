"""API keys: how they are stored, what they permit, and their limits."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from echo_model import EchoModel, serving
from patience import PATIENCE_S, wait_until
from typer.testing import CliRunner, Result

from freedive.cli import app
from freedive.config import ServerConfig, load
from freedive.errors import NotFound, UserError
from freedive.server import keys
from freedive.server.app import check_keys
from freedive.server.keys import DamagedKeys, Key, Keys
from freedive.server.rate_limits import RateLimited, RateLimits

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    return tmp_path


@pytest.fixture
def url(fake_model: EchoModel) -> Iterator[str]:
    """The address of a server that checks keys."""
    with serving(fake_model, keys=Keys()) as url:
        yield url


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def ask(url: str, route: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return httpx.post(f"{url}{route}", json=CHAT, headers=headers)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(home: Path) -> None:
    made = invoke("create", "ann", "--requests-per-minute", "5")
    secret = made.stdout.strip()
    assert secret.startswith("fd-")
    assert len(secret) >= 35
    kept = (home / "keys.json").read_text()
    assert secret not in kept
    assert secret[3:-4] not in kept
    assert (home / "keys.json").stat().st_mode & 0o777 == 0o600
    listed = invoke("list").stdout
    assert "ann" in listed
    assert secret[-4:] in listed
    assert secret not in listed
    assert [path.name for path in home.iterdir() if path.is_file()] == ["keys.json"]


def test_a_key_is_revoked_by_name_or_id() -> None:
    keys.create("ann")
    keys.create("bob")
    (bob,) = (key for key in keys.read_keys(keys.key_file()) if key.name == "bob")
    assert invoke("revoke", "ann").stdout == "The key of ann is revoked\n"
    assert keys.revoke(bob.id).name == "bob"
    assert keys.read_keys(keys.key_file()) == ()
    with pytest.raises(NotFound, match="There is no key ann"):
        keys.revoke("ann")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "a/b"), "cannot be a key's name"),
        (("create",), "create needs a name"),
        (("revoke", "x"), "no key x"),
    ],
)
def test_an_impossible_command_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_a_second_key_of_the_same_name_is_refused() -> None:
    keys.create("ann")
    with pytest.raises(UserError, match="There is already a key named ann"):
        keys.create("ann")


def test_two_writers_do_not_lose_each_others_keys() -> None:
    names = [f"key{number}" for number in range(8)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(keys.create, names)
    assert sorted(key.name for key in keys.read_keys(keys.key_file())) == names


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": [{}]}', '{"keys": [1]}', "\udcff"])
def test_a_damaged_key_file_is_reported_and_locks_the_server(home: Path, fake_model: EchoModel, text: str) -> None:
    secret = keys.create("ann")
    with serving(fake_model, keys=Keys()) as url:
        (home / "keys.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        refused = ask(url, authorization=f"Bearer {secret}")
        assert refused.status_code == 503
        assert str(home) not in refused.text
        assert httpx.get(f"{url}/health").status_code == 200
    with pytest.raises(DamagedKeys, match="Restore it, or delete it"):
        Keys()
    with pytest.raises(DamagedKeys):
        keys.create("bob")


@pytest.mark.parametrize(
    "header", [("authorization", "Bearer {}"), ("authorization", "bearer  {}"), ("x-api-key", "{}"), ("api-key", "{}")]
)
def test_a_key_is_accepted_in_the_header_of_every_api(url: str, header: tuple[str, str]) -> None:
    secret = keys.create("ann")
    name, form = header
    assert ask(url, **{name: form.format(secret)}).status_code == 200
    assert ask(url, **{name: form.format(secret[:-1])}).status_code == 401


def test_without_a_key_only_the_page_and_the_docs_are_open(url: str) -> None:
    assert httpx.get(f"{url}/v1/models").status_code == 200
    keys.create("ann")
    for route in ("/", "/stats", "/static/main.js", "/health", "/docs", "/openapi.json"):
        assert httpx.get(f"{url}{route}").status_code == 200, route
    closed = ("/v1/models", "/models", "/metrics", "/v1/stats", "/static", "/nowhere", "//v1/models", "/v1/models/")
    for route in closed:
        assert httpx.get(f"{url}{route}").status_code == 401, route


def test_the_refusal_is_in_each_apis_form(url: str) -> None:
    keys.create("ann")
    refused = ask(url)
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert ask(url, "/v1/messages").json()["error"]["type"] == "authentication_error"
    assert isinstance(ask(url, "/api/chat").json()["error"], str)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="fd-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="not valid on this server"):
            client.models.list()
        right = client.with_options(api_key=keys.create("bob"))
        assert [model.id for model in right.models.list()] == ["echo"]


def test_a_revoked_key_is_refused_at_once_also_if_it_was_the_last(url: str, home: Path) -> None:
    secret = keys.create("ann")
    assert ask(url, authorization=f"Bearer {secret}").status_code == 200
    keys.revoke("ann")
    assert ask(url, authorization=f"Bearer {secret}").status_code == 401
    assert ask(url).status_code == 401
    (home / "keys.json").unlink()
    assert ask(url).status_code == 401


def test_a_revoked_key_is_not_admitted_and_a_damaged_file_revokes_none(home: Path) -> None:
    keys.create("ann")
    [ann] = keys.read_keys(home / "keys.json")
    store = Keys()
    assert (store.admits(ann.id), store.admits("other"), store.admits("")) == (True, False, False)
    (home / "keys.json").write_text("{")
    store.reload_if_changed()
    assert store.admits(ann.id)
    (home / "keys.json").write_text('{"keys": []}')
    store.reload_if_changed()
    assert not store.admits(ann.id)


def test_without_keys_nobody_is_admitted_until_there_is_one() -> None:
    store = Keys()
    assert store.admits("")
    keys.create("ann")
    store.reload_if_changed()
    assert not store.admits("")


def test_a_restart_after_the_last_key_is_revoked_stays_locked(fake_model: EchoModel, home: Path) -> None:
    keys.create("ann")
    assert f"delete {home / 'keys.json'}" in invoke("revoke", "ann").stderr
    with serving(fake_model, keys=check_keys(ServerConfig())) as url:
        assert ask(url).status_code == 401
    (home / "keys.json").unlink()
    assert not check_keys(ServerConfig()).required


def test_a_key_has_the_rights_that_it_was_made_with() -> None:
    assert invoke("create", "ann", "--may", "pull, manage").exit_code == 0
    keys.create("bob")
    assert invoke("create", "dan", "--may", "pull", "--may", "manage").exit_code == 0
    assert [key.may for key in keys.read_keys(keys.key_file())] == [("pull", "manage"), (), ("pull", "manage")]
    listed = invoke("list").stdout.splitlines()
    assert listed[1].endswith("ask, pull, manage")
    assert listed[2].endswith("ask")
    refused = invoke("create", "cid", "--may", "everything")
    assert "'everything' is not a right. Choose one of pull, manage, files" in refused.stderr


def test_other_addresses_need_keys_or_an_explicit_flag() -> None:
    with pytest.raises(UserError, match="freedive keys create NAME, or use --insecure"):
        check_keys(ServerConfig(host="0.0.0.0"))
    result = CliRunner().invoke(app, ["serve", "no-such-model", "--host", "0.0.0.0"])
    assert "--insecure" in result.stderr
    assert not check_keys(ServerConfig(host="0.0.0.0", insecure=True)).required
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert not check_keys(ServerConfig(host=host)).required
    keys.create("ann")
    assert check_keys(ServerConfig(host="0.0.0.0")).required


def test_a_switch_in_the_environment_is_written_in_any_usual_way() -> None:
    for text in ("1", "true", "True", "yes", "on"):
        assert load(ServerConfig, environ={"FREEDIVE_INSECURE": text}).insecure is True
    for text in ("0", "false", "no", "OFF"):
        assert load(ServerConfig, environ={"FREEDIVE_INSECURE": text}).insecure is False
    with pytest.raises(UserError, match=r"FREEDIVE_INSECURE is 'perhaps'.*true or false"):
        load(ServerConfig, environ={"FREEDIVE_INSECURE": "perhaps"})


def test_a_file_that_may_not_be_read_locks_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.create("ann")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DamagedKeys, match="Permission denied"):
        Keys()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_requests_of_a_minute_are_counted_and_the_retry_time_is_exact() -> None:
    clock = Clock()
    rate_limits, key = RateLimits(clock), Key("1", "ann", "", "", "", requests_per_minute=2)
    for second in (0.0, 20.0):
        clock.now = 1000 + second
        with rate_limits.track(key):
            pass
    clock.now = 1030.5
    with pytest.raises(RateLimited) as refused, rate_limits.track(key):
        pass
    assert refused.value.retry_after_s == 30
    clock.now += refused.value.retry_after_s
    with rate_limits.track(key):
        pass
    with pytest.raises(RateLimited), rate_limits.track(key):
        pass
    with rate_limits.track(Key("2", "bob", "", "", "", requests_per_minute=2)):
        pass


def test_a_key_beyond_its_limit_gets_a_retry_time(url: str) -> None:
    secret = keys.create("ann", requests_per_minute=1)
    other = keys.create("bob")
    assert ask(url, authorization=f"Bearer {secret}").status_code == 200
    refused = ask(url, authorization=f"Bearer {secret}")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 50 <= int(refused.headers["retry-after"]) <= 60
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": secret}).status_code == 200
    assert ask(url, authorization=f"Bearer {other}").status_code == 200


def test_refused_requests_are_logged_with_their_key(fake_model: EchoModel) -> None:
    seen: list[tuple[str, int]] = []
    secret = keys.create("ann", requests_per_minute=1)
    with serving(
        fake_model, keys=Keys(), observers=[lambda record: seen.append((record.caller, record.status))]
    ) as url:
        for _ in range(2):
            ask(url, authorization=f"Bearer {secret}")
        ask(url, authorization="Bearer fd-wrong")
    assert seen == [("ann", 200), ("ann", 429), ("", 401)]


def test_requests_under_way_are_limited_until_they_end(url: str, fake_model: EchoModel) -> None:
    headers = {"authorization": f"Bearer {keys.create('ann', max_running=1)}"}
    fake_model.delay_s = 0.01
    body = CHAT | {"stream": True, "messages": [{"role": "user", "content": "word " * 500}]}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = ask(url, **headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    fake_model.delay_s = 0.0
    assert fake_model.engine.generations[-1].cancelled.wait(PATIENCE_S)
    wait_until(lambda: ask(url, **headers).status_code == 200)


def test_keys_never_reach_the_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = keys.create("ann")
    body = CHAT | {"messages": [{"role": "user", "content": "untemplated"}]}
    headers = {"authorization": f"Bearer {secret}"}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).status_code == 500
    assert "request req-" in caplog.text
    assert secret not in caplog.text


def test_the_temporary_file_of_a_crash_is_ignored(home: Path) -> None:
    (home / "keys.partial").write_text("half")
    os.chmod(home / "keys.partial", 0o644)
    keys.create("ann")
    assert (home / "keys.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((home / "keys.json").read_text())["keys"][0]["name"] == "ann"
