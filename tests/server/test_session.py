"""The page's key in a cookie: set after a check, and counted only for requests of the server's own page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from echo_model import EchoModel, serving

from freedive.server import keys
from freedive.server.keys import Keys

SESSION, CHATS, MODELS = "/app/session", "/app/conversations", "/v1/models"
OWN = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    return keys.create("ann"), keys.create("bob")


@pytest.fixture
def url(secrets: tuple[str, str]) -> Iterator[str]:
    with serving(EchoModel(), keys=Keys()) as url:
        yield url


def cookie(secret: str) -> dict[str, str]:
    return {"cookie": f"lang=en; freedive_key={secret}"}


def test_a_key_is_checked_and_becomes_a_cookie(url: str, secrets: tuple[str, str]) -> None:
    wrong = httpx.post(f"{url}{SESSION}", json={"key": "fd-guess"})
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    with httpx.Client(base_url=url, headers=OWN) as http:
        right = http.post(SESSION, json={"key": secrets[0]})
        assert right.json() == {"name": "ann"}
        attributes = {part.strip().lower() for part in right.headers["set-cookie"].split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/"} <= attributes
        assert "secure" not in attributes
        assert http.get(CHATS).status_code == http.get(MODELS).status_code == 200
        assert http.delete(SESSION).json() == {"deleted": True}
        assert http.get(CHATS).status_code == 401


def test_over_https_the_cookie_is_secure(url: str, secrets: tuple[str, str]) -> None:
    forwarded = {"x-forwarded-proto": "https"}  # from a proxy on this machine
    answer = httpx.post(f"{url}{SESSION}", json={"key": secrets[0]}, headers=forwarded)
    assert "secure" in answer.headers["set-cookie"].lower()


FOREIGN = (
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "{url}"},
    {"origin": "https://evil.example"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "null"},
    {"origin": ""},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_the_cookie_does_not_count_for_other_pages(url: str, secrets: tuple[str, str], headers: dict[str, str]) -> None:
    sent = {name: value.format(url=url) for name, value in headers.items()} | cookie(secrets[0])
    for path in (CHATS, MODELS):
        assert httpx.get(f"{url}{path}", headers=sent).status_code in (401, 403)
    asked = httpx.post(f"{url}/v1/completions", json={"model": "echo", "prompt": "x"}, headers=sent)
    assert asked.status_code in (401, 403)
    assert httpx.post(f"{url}{CHATS}", json={}, headers=sent).status_code in (401, 403)


@pytest.mark.parametrize("headers", [OWN, {"origin": "{url}"}], ids=str)
def test_the_cookie_counts_for_the_servers_own_page(
    url: str, secrets: tuple[str, str], headers: dict[str, str]
) -> None:
    sent = {name: value.format(url=url) for name, value in headers.items()} | cookie(secrets[0])
    for path in (CHATS, MODELS):
        assert httpx.get(f"{url}{path}", headers=sent).status_code == 200


def test_without_headers_of_a_browser_the_cookie_counts_for_the_page_alone(url: str, secrets: tuple[str, str]) -> None:
    assert httpx.get(f"{url}{CHATS}", headers=cookie(secrets[0])).status_code == 200
    assert httpx.get(f"{url}{MODELS}", headers=cookie(secrets[0])).status_code == 401
    typed = cookie(secrets[0]) | {"sec-fetch-site": "none"}
    assert httpx.get(f"{url}{MODELS}", headers=typed).status_code == 401


def test_a_header_counts_before_the_cookie_and_two_keys_see_their_own(url: str, secrets: tuple[str, str]) -> None:
    ann, bob = secrets
    id = httpx.post(f"{url}{CHATS}", json={}, headers=cookie(ann) | OWN).json()["id"]
    assert httpx.get(f"{url}{CHATS}/{id}", headers=cookie(bob) | OWN).status_code == 404
    both = cookie(bob) | OWN | {"authorization": f"Bearer {ann}"}
    assert httpx.get(f"{url}{CHATS}/{id}", headers=both).status_code == 200


def test_the_cookie_of_a_revoked_key_counts_no_more(url: str, secrets: tuple[str, str]) -> None:
    sent = cookie(secrets[0]) | OWN
    assert httpx.get(f"{url}{CHATS}", headers=sent).status_code == 200
    keys.revoke("ann")
    assert httpx.get(f"{url}{CHATS}", headers=sent).status_code == 401


def test_pages_of_other_origins_begin_no_session(url: str, secrets: tuple[str, str]) -> None:
    body = {"key": secrets[0]}
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        assert httpx.post(f"{url}{SESSION}", json=body, headers=headers).status_code == 403


def test_a_server_without_keys_sets_no_cookie() -> None:
    with serving(EchoModel()) as url:
        answer = httpx.post(f"{url}{SESSION}", json={"key": "fd-any"})
        assert (answer.status_code, answer.json(), "set-cookie" in answer.headers) == (200, {"name": ""}, False)
