"""On a machine of one's own nobody needs a key, so that pages of others must be kept out by what browsers tell."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from echo_model import EchoModel, serving

from freedive.config import ServerConfig
from freedive.server.guard import is_loopback


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
def test_a_name_that_suddenly_means_this_machine_is_refused(url: str, host: str) -> None:
    for route in ("/v1/models", "/", "/health"):
        refused = httpx.get(f"{url}{route}", headers={"host": host})
        assert refused.status_code == 403
        assert "--hosts" in refused.json()["error"]["message"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://1.2.3.4", "http://localhost:1", ""])
def test_pages_from_elsewhere_are_refused(url: str, origin: str) -> None:
    body = {"model": "echo", "prompt": "hi"}
    refused = httpx.post(f"{url}/v1/completions", json=body, headers={"origin": origin})
    assert refused.status_code == 403
    assert "a page from elsewhere" in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", ["{url}", "https://other.lan", "http://box.lan:5"])
def test_the_servers_own_page_is_not(url: str, origin: str) -> None:
    body = {"model": "echo", "prompt": "hi"}
    headers = {"origin": origin.format(url=url)}
    assert httpx.post(f"{url}/v1/completions", json=body, headers=headers).status_code == 200


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))
