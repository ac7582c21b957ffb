"""A server on the user's own machine needs no key, so pages of other origins are refused by their headers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving

from freedive.config import ServerConfig, load
from freedive.errors import UserError
from freedive.server.app import check_keys
from freedive.server.auth import is_loopback
from freedive.server.keys import Key, Keys, create


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(EchoModel(), config=ServerConfig(hosts="box.lan, Other.lan")) as url:
        yield url


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "a.localhost:80", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "box.lan:1"]
)
def test_this_machines_names_are_known(url: str, host: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "[", "1.2.3"])
def test_a_foreign_host_name_is_refused_against_dns_rebinding(url: str, host: str) -> None:
    for route in ("/v1/models", "/", "/health"):
        refused = httpx.get(f"{url}{route}", headers={"host": host})
        assert refused.status_code == 403
        assert "--hosts" in refused.json()["error"]["message"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://1.2.3.4", "http://localhost:1", ""])
def test_pages_from_elsewhere_are_refused(url: str, origin: str) -> None:
    body = {"model": "echo", "prompt": "hi"}
    refused = httpx.post(f"{url}/v1/completions", json=body, headers={"origin": origin})
    assert refused.status_code == 403
    message = refused.json()["error"]["message"]
    assert message == f"Pages of other origins may not use this server. Serve with --origins {origin}"
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", ["{url}", "https://other.lan", "http://box.lan:5"])
def test_the_servers_own_page_is_allowed(url: str, origin: str) -> None:
    body = {"model": "echo", "prompt": "hi"}
    headers = {"origin": origin.format(url=url)}
    assert httpx.post(f"{url}/v1/completions", json=body, headers=headers).status_code == 200


def test_loopback_addresses_are_recognised() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))


ALLOWED = ("http://localhost:3000", "app://obsidian.md", "null")
LOCKED = Key("id", "ann", hashlib.sha256(b"secret").hexdigest(), "", "")


class OneKey(Keys):
    """A key store with one key and no file."""

    def __init__(self) -> None:
        self._keys, self.required = (LOCKED,), True

    def reload_if_changed(self) -> None:
        """Does nothing, since the keys never change."""


@pytest.fixture(params=["open", "locked"], scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that pages of other origins may use, with and without keys."""
    keys = OneKey() if request.param == "locked" else None
    with serving(EchoModel(), config=ServerConfig(origins=(",".join(ALLOWED),)), keys=keys) as url:
        yield url


def preflight(url: str, origin: str, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    asked |= {"access-control-request-headers": "authorization,content-type"} | headers
    return httpx.options(f"{url}{path}", headers=asked)


@pytest.mark.parametrize("origin", ALLOWED)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses/x", "/nowhere"])
def test_a_preflight_of_an_allowed_page_is_answered_before_a_key_is_asked_for(
    shared: str, origin: str, path: str
) -> None:
    answer = preflight(shared, origin, path, **{"access-control-request-private-network": "true"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == origin
    assert {"POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-private-network" not in preflight(shared, origin, path).headers


@pytest.mark.parametrize("origin", ALLOWED)
def test_an_allowed_page_reads_answers_and_errors(shared: str, origin: str) -> None:
    headers = {"origin": origin, "authorization": "Bearer secret"}
    body = {"model": "echo", "prompt": "hi"}
    good = httpx.post(f"{shared}/v1/completions", json=body, headers=headers)
    bad = httpx.post(f"{shared}/v1/completions", json=body | {"temperature": -1}, headers=headers)
    missing = httpx.get(f"{shared}/nowhere", headers=headers)
    assert [answer.status_code for answer in (good, bad, missing)] == [200, 400, 404]
    for answer in (good, bad, missing):
        assert answer.headers["access-control-allow-origin"] == origin
        assert {"X-Request-Id", "Retry-After", "X-Freedive-Ignored"} <= set(
            answer.headers["access-control-expose-headers"].split(", ")
        )
        assert "Origin" in answer.headers["vary"]


def test_an_allowed_page_still_needs_a_key_and_may_read_that() -> None:
    with serving(EchoModel(), config=ServerConfig(origins=("*",)), keys=OneKey()) as url:
        refused = httpx.post(f"{url}/v1/completions", json={}, headers={"origin": "https://any.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://any.example"
        assert preflight(url, "https://any.example").status_code == 204


@pytest.mark.parametrize("origin", ["http://localhost:3001", "https://localhost:3000", "http://localhost:3000.x", "x"])
def test_an_origin_that_is_not_named_is_refused_with_the_flag_that_helps(shared: str, origin: str) -> None:
    refused = preflight(shared, origin)
    assert refused.status_code == 403
    assert f"--origins {origin}" in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in refused.headers
    body = {"model": "echo", "prompt": "hi"}
    answer = httpx.post(f"{shared}/v1/completions", json=body, headers={"origin": origin, "x-api-key": "secret"})
    assert "access-control-allow-origin" not in answer.headers


def test_options_that_are_no_preflight_are_as_before(url: str) -> None:
    assert httpx.options(f"{url}/v1/models").status_code == 405


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("hosts", "localhost:3000", "--origins http://localhost:3000"),
        ("hosts", "box.lan,https://other.lan", "--origins https://other.lan"),
        ("origins", ("localhost:3000",), "such as http://localhost:3000"),
        ("origins", ("http://localhost:3000/path",), "such as http://localhost:3000"),
        ("origins", ("null,http://me@x",), "such as http://localhost:3000"),
    ],
)
def test_hosts_and_origins_that_cannot_work_are_refused(field: str, value: Any, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy) as refused:
        ServerConfig(**{field: value})
    assert refused.value.param == field


def test_origins_are_read_as_people_write_them() -> None:
    config = load(ServerConfig, environ={"FREEDIVE_ORIGINS": "http://LOCALHOST:3000/, app://obsidian.md"})
    assert config.allowed_origins == {"http://localhost:3000", "app://obsidian.md"}


def test_all_origins_need_keys_or_an_explicit_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="Every web page"):
        check_keys(ServerConfig(origins=("*",)))
    assert check_keys(ServerConfig(origins=("*",), insecure=True))
    create("ann")
    assert check_keys(ServerConfig(origins=("*",))).required
