"""Slow, unusual and hostile clients have a bounded cost, and the server shuts down correctly."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from echo_model import EchoModel, served, serving
from fastapi.testclient import TestClient
from pace import seconds_on_an_idle_core
from patience import PATIENCE_S

from freedive.config import ServerConfig
from freedive.errors import UserError
from freedive.server import body as bodies
from freedive.server import transport
from freedive.server.app import create_app, server
from freedive.server.body import MAX_DEPTH, check_json

ROOT = Path(__file__).parents[2]
JSON = {"content-type": "application/json"}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def nested(depth: int) -> bytes:
    """Returns a request with lists nested ``depth`` deep."""
    return b'{"model": "echo", "prompt": "hi", "logit_bias": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1000, 100_000])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_deep_nesting_is_refused_as_such(live_server: str, route: str, depth: int) -> None:
    answer = httpx.post(f"{live_server}{route}", content=nested(depth), headers=JSON)
    assert answer.status_code == 400
    assert f"nested more than {MAX_DEPTH} deep" in answer.json()["error"]["message"]


def test_the_deepest_accepted_nesting_is_no_server_error(live_server: str) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range((MAX_DEPTH - 8) // 2):
        schema = {"type": "object", "properties": {"x": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    check_json(json.dumps(body).encode())
    assert httpx.post(f"{live_server}/v1/chat/completions", json=body).status_code == 200
    assert httpx.post(f"{live_server}/v1/completions", content=nested(MAX_DEPTH), headers=JSON).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"a": "[" * 1000 + '\\"' + "{" * 1000}).encode(),
        json.dumps([[1, {"a": []}]] * 1000).encode(),
        b'["' + b'\\"[' * 500 + b'"]',
        json.dumps({"深": "海[" * 200}, ensure_ascii=False).encode(),
    ],
)
def test_brackets_in_strings_are_no_nesting(body: bytes) -> None:
    json.loads(body)
    check_json(body)


@pytest.mark.parametrize("body", [b'{"prompt": "\xff"}', b"\xff\xfe[\0]\0", b"[\0]\0", b'{"a": "\xed\xa0\x80"}'])
def test_a_body_that_is_not_utf8_is_refused_as_such(live_server: str, body: bytes) -> None:
    answer = httpx.post(f"{live_server}/v1/completions", content=body, headers=JSON)
    assert answer.status_code == 400
    assert "Send JSON in UTF-8" in answer.json()["error"]["message"]


@pytest.mark.parametrize("part", [b"[],", b'{"":[]},', b'[],"","",', b"[" * 60 + b"]" * 60 + b",", b'"\\n\\n\\n\\n",'])
def test_the_worst_bodies_are_refused_before_they_are_parsed(part: bytes) -> None:
    body = b"[" + part * ((16 << 20) // len(part)) + b"1]"

    def refuse() -> None:
        with pytest.raises(UserError, match=r"has more than \d+ (strings|values|lists and objects|backslashes)"):
            check_json(body)

    assert seconds_on_an_idle_core(refuse) < 1


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as raw:
        yield raw


def received(raw: socket.socket, end: bytes) -> bytes:
    """Receives data until it contains ``end``."""
    data = b""
    while end not in data:
        data += raw.recv(10_000)
    return data


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_a_body_is_bounded_whatever_the_method(fake_model: EchoModel, method: str) -> None:
    with serving(fake_model, config=ServerConfig(max_body_mb=0.001)) as url:
        answer = httpx.request(method, f"{url}/v1/models", content=b" " * 2000, headers=JSON)
        assert answer.status_code == 413
        assert httpx.request(method, f"{url}/v1/models").status_code in (200, 405)


def test_a_body_that_does_not_arrive_times_out(live_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.2)
    with connected(live_server) as raw:
        raw.sendall(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
        assert received(raw, b"within 0.2 s").startswith(b"HTTP/1.1 408")


def test_a_request_with_two_ends_is_the_last_of_its_connection(live_server: str) -> None:
    """The rest may be a request only to a proxy that trusts the other length."""
    chunked = f"{HEAD}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    with connected(live_server) as raw:
        raw.sendall(f"{chunked}GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answers = b"".join(iter(lambda: raw.recv(10_000), b""))
    assert answers.startswith(b"HTTP/1.1 400")
    assert answers.count(b"HTTP/1.1") == 1


def test_a_head_that_does_not_arrive_times_out(live_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HEAD_S", 1)
    with connected(live_server) as raw:
        raw.sendall(b"GET / HT")
        assert raw.recv(100) == b""
    with connected(live_server) as raw:  # the connection was used before
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert received(raw, b"}}}").startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET /hea")
        assert raw.recv(100) == b""


def test_a_request_may_take_longer_than_the_timeout_of_heads(
    live_server: str, fake_model: EchoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HEAD_S", 1)
    monkeypatch.setattr(fake_model, "delay_s", 0.2)
    body = {"model": "echo", "prompt": "slow answer"}
    assert httpx.post(f"{live_server}/v1/completions", json=body).json()["choices"][0]["text"] == "slow answer"


def test_a_client_that_reads_nothing_is_dropped_and_its_answer_cancelled() -> None:
    model = EchoModel(delay_s=0.0, script={"endless": "word " * 400_000}, max_context=3_000_000)
    with serving(model, config=ServerConfig(stall_timeout=0.3)) as url, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        parts = urlsplit(url)
        raw.connect((parts.hostname, parts.port))
        body = json.dumps(
            {"model": "echo", "prompt": "endless", "stream": True, "max_tokens": 2_000_000, "logprobs": 5}
        )
        raw.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert raw.recv(16).startswith(b"HTTP/1.1 200")
        assert model.engine.generations[0].cancelled.wait(PATIENCE_S)
        num_made = model.engine.generations[0].timings.num_generated
        assert num_made < 100_000  # the rest was never generated
        assert httpx.get(f"{url}/health").json()["status"] == "ok"


def test_a_client_may_name_its_request(live_server: str) -> None:
    def named(**headers: str) -> str:
        return httpx.get(f"{live_server}/health", headers=headers).headers["x-request-id"]

    assert named(**{"x-request-id": "mine/1:2"}) == "mine/1:2"
    for bad in ("", "two words", "x" * 129, "tab\tbed"):
        assert re.fullmatch(r"req-[0-9a-f]{32}", named(**{"x-request-id": bad}))


SERVER = """
from echo_model import EchoModel, served
from freedive.config import ServerConfig
from freedive.ops.paging import ExpertCacheStats
from freedive.server.app import serve
model = EchoModel(delay_s=0.02, script={'short': 'word ' * 10, 'endless': 'word ' * 800})
model.expert_cache = lambda: ExpertCacheStats(4 * 10**9, 10**9, [(3, 1, 512, 0.5)])
serve(served(model), ServerConfig(port=0, drain=%s))
"""


@contextmanager
def process(drain: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts a server; its first line must say how far the memory for experts on disk is filled."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", SERVER % drain]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        message = running.stderr.readline()
        assert message.startswith("freedive serves echo (experts on disk; 1.00 of 4.00 GB of memory for them filled, ")
        yield running, re.search(r"http://[\d.:]+", message)[0]


def streamed(address: str, prompt: str, received: list[str], begun: threading.Event) -> None:
    body = {"model": "echo", "prompt": prompt, "max_tokens": 4000, "stream": True}
    try:
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                received.append(line)
                begun.set()
    except httpx.RemoteProtocolError:
        received.append("cut")


@contextmanager
def asking(address: str, prompt: str) -> Iterator[list[str]]:
    """A block during which an answer is streamed; yields all that was received."""
    received: list[str] = []
    begun = threading.Event()
    thread = threading.Thread(target=streamed, args=(address, prompt, received, begun))
    thread.start()
    assert begun.wait(PATIENCE_S)
    yield received
    thread.join(PATIENCE_S)


def test_sigterm_lets_answers_end_and_takes_no_new_ones() -> None:
    with process(drain=20) as (running, address), connected(address) as raw:
        with asking(address, "short") as received:
            running.send_signal(signal.SIGTERM)
            raw.sendall(f"{HEAD}Content-Length: 2\r\n\r\n{{}}".encode())
            late = raw.recv(10_000)
            assert running.wait(PATIENCE_S) == 0
        assert "data: [DONE]" in received
        assert late == b"" or (late.startswith(b"HTTP/1.1 503") and b"retry-after: " in late.lower())
        assert running.stderr.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


def test_sigterm_waits_no_longer_than_drain() -> None:
    with process(drain=0.3) as (running, address), asking(address, "endless") as received:
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 0  # the answer would take longer
    assert "data: [DONE]" not in received


def test_a_second_signal_ends_at_once() -> None:
    with process(drain=60) as (running, address), asking(address, "endless"):
        running.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE_S) == 0
        assert running.stderr.read() == ""


def test_a_server_that_shuts_down_refuses_new_requests() -> None:
    app = create_app(served(EchoModel()))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/v1/models").status_code == 200
        server(app).handle_exit(signal.SIGTERM, None)
        refused = client.get("/v1/models")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
