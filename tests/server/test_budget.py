"""The cost of a request is bounded: no body delays other requests, and without a key no body is read."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from echo_model import EchoModel, served, serving
from fastapi.routing import APIRoute
from pace import seconds_on_an_idle_core
from pydantic import ValidationError

import freedive.engine
import freedive.server
import freedive.server.page
import freedive.text
from freedive.errors import Unavailable, UserError
from freedive.server import keys, transport
from freedive.server.api_errors import ApiError
from freedive.server.app import create_app
from freedive.server.body import BODY_S, MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES, Bodies, check_json
from freedive.server.completion_stream import Delta
from freedive.server.ollama.times import MAX_DURATION, seconds
from freedive.server.openai.chat import ChatChoice
from freedive.server.openai.fields import ChatRequest
from freedive.server.routing import Route, encode

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import walk

HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
MIB = 1 << 20


@pytest.fixture
def locked(fake_model: EchoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that requires a key."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    keys.create("ann")
    with serving(fake_model, keys=keys.Keys()) as url:
        yield url


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=BODY_S)


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/static/none", "/v1/chat/completions", "/nowhere"])
def test_requests_without_a_key_are_refused_before_their_body_is_read(locked: str, path: str) -> None:
    with connect(locked) as raw:
        raw.sendall(HEAD.format(path, 30 * MIB).encode() + b"[" * 200)
        assert re.match(rb"HTTP/1.1 4\d\d", raw.recv(1000))
        begun = time.monotonic()
        while raw.recv(10_000):  # until the server gives up waiting for the rest
            pass
        assert time.monotonic() - begun < BODY_S / 2


def test_routes_without_a_body_read_none(live_server: str) -> None:
    with connect(live_server) as raw:
        raw.sendall(HEAD.format("/v1/models", 1000).replace("POST", "GET").encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")


def test_all_routes_with_a_body_read_it_in_one_way() -> None:
    routes = _flat(create_app(served(EchoModel())).routes)
    taking = [route for route in routes if isinstance(route, APIRoute) and route.body_field]
    assert len(taking) > 10
    assert [route.path for route in taking if not isinstance(route, Route)] == []


def _flat(routes: list[object]) -> list[object]:
    return [
        inner
        for route in routes
        for inner in (_flat(route.original_router.routes) if hasattr(route, "original_router") else [route])
    ]


def test_the_total_of_unfinished_bodies_is_bounded() -> None:
    """The largest body is dropped, so that small ones are not refused."""

    async def run() -> None:
        limit = Bodies(1000)
        outcomes: list[object] = []

        async def read(num_bytes: int, ends: bool) -> None:
            messages = [{"type": "http.request", "body": b"x" * num_bytes, "more_body": not ends}]

            async def receive() -> object:
                return messages.pop() if messages else await asyncio.sleep(60)

            try:
                async with limit.received(SimpleNamespace(receive=receive)) as data:
                    outcomes.append(len(data))
            except Unavailable as error:
                outcomes.append(type(error))

        slow = [asyncio.ensure_future(read(900, ends=False)) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert limit.num_bytes == 3600
        slow.append(asyncio.ensure_future(read(950, ends=False)))
        await asyncio.sleep(0.01)
        assert outcomes == [Unavailable]
        await read(300, ends=True)
        assert 300 in outcomes
        assert limit.num_bytes <= 4000
        for task in slow:
            task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 101 + b'"' + b'\\"' * (15 * MIB),
        b'"' + b"\\\\" * (15 * MIB),
        b'"' + b"\\" * (31 * MIB - 1),
        b"[" * (31 * MIB),
        b'"' * (31 * MIB),
        b"," * (31 * MIB),
        b"[]" * (15 * MIB),
        b'{"":[]},' * (4 * MIB),
        "é".encode() * (15 * MIB),
        b" " * (31 * MIB),
    ],
    ids=lambda body: repr(body[:4]),
)
def test_checking_a_body_takes_time_in_proportion_to_its_length(body: bytes) -> None:
    def check() -> None:
        with contextlib.suppress(UserError, ValueError):
            check_json(body)
            json.loads(body[: 1 << 20])

    assert seconds_on_an_idle_core(check) < 2


def test_the_largest_accepted_bodies_are_parsed_quickly() -> None:
    for part, limit in ((b"12345,", MAX_VALUES), (b'"abc":1,', MAX_STRINGS), (b"[[1]],", MAX_CONTAINERS // 2)):
        ends = (b"{", b"}") if b":" in part else (b"[", b"]")
        body = ends[0] + (part * (limit - 2))[:-1] + ends[1]
        check_json(body)
        assert seconds_on_an_idle_core(partial(json.loads, body)) < 1
        with pytest.raises(UserError, match="has more than"):
            check_json(b"[" + body + b"," + body + b"," + body + b"]")


def test_validation_stops_at_the_first_error() -> None:
    messages = [{"role": "user", "content": 5}] * 100_000
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "echo", "messages": messages, "stop": [7] * 100_000})
    assert caught.value.error_count() < 20


def test_biases_are_bounded_at_the_edge() -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    ChatRequest.model_validate(body | {"logit_bias": {str(token): 1.0 for token in range(4096)}})
    with pytest.raises(ValidationError, match="logit_bias"):
        ChatRequest.model_validate(body | {"logit_bias": {str(token): 1.0 for token in range(4097)}})


def test_large_answers_are_encoded_as_small_ones() -> None:
    value = {"a": [*range(5000)], "b": [{"c": [0.5] * 3000}, {}], "d": None, "e": [], "f": "é\ud800", "g": {"h": [[1]]}}
    assert json.loads(encode(value)) == value


def test_connections_beyond_the_limit_displace_the_longest_idle(
    live_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 8)
    idle = [connect(live_server) for _ in range(40)]
    try:
        assert httpx.get(f"{live_server}/health").status_code == 200
        idle[0].settimeout(60)
        assert idle[0].recv(10) == b""
    except ConnectionResetError:
        pass
    finally:
        for each in idle:
            each.close()


def test_connections_beyond_the_limit_are_refused_where_all_are_busy(
    fake_model: EchoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(fake_model) as url:
        busy = [connect(url) for _ in range(2)]
        for each in busy:
            each.sendall(HEAD.format("/v1/completions", 1000).encode())
        httpx.get(f"{url}/health", headers={"connection": "close"})  # the server has read them when it answers this
        monkeypatch.setattr(transport, "MAX_CONNECTIONS", 2)
        with connect(url) as raw:
            assert raw.recv(1000).startswith(b"HTTP/1.1 503")
        for each in busy:
            each.close()


def test_many_connections_are_each_inspected_once(live_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scanning all connections for each new one once froze the server for 20 s with 6000 connections."""
    looks = []
    is_idle = transport.Connection.is_idle

    def counted(connection: transport.Connection) -> bool:
        looks.append(1)
        return is_idle.__get__(connection)

    monkeypatch.setattr(transport.Connection, "is_idle", property(counted))
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 50)
    crowd = [connect(live_server) for _ in range(150)]
    assert httpx.get(f"{live_server}/health").status_code == 200
    for each in crowd:
        each.close()
    assert 100 <= len(looks) <= 400


def test_connections_leave_descriptors_for_the_models() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 2 * transport.MAX_CONNECTIONS


def modules() -> Iterator[object]:
    for package in (freedive.server, freedive.text, freedive.server.page, freedive.engine):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def patterns(value: object, depth: int = 0) -> Iterator[re.Pattern[str] | re.Pattern[bytes]]:
    """Yields every compiled pattern in ``value``: in collections, and in objects of freedive."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 5:
        inner = getattr(value, "__dict__", {}) if type(value).__module__.startswith("freedive") else {}
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        for part in (*parts, *dict(inner).values()):
            yield from patterns(part, depth + 1)


PATTERNS = sorted({pattern for module in modules() for pattern in patterns([*vars(module).values()])}, key=str)
PARTS: tuple[str, ...] = ("9", ".", "a", " ", "\n", '"', "'", "\\", "<", ">", "[", "{", "(", "%", "#", "/", "_", "-")
PARTS += ("1h", "9s", "µs")
PARTS += (
    "]",
    "content ",
    "is ",
    "not ",
    "<|",
    "|>",
    "```",
    "to=",
    "to=a<|message|>",
    "<tool_call",
    "[ARGS]",
    "é",
    "%9",
)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: repr(pattern.pattern)[:40])
def test_patterns_take_time_in_proportion_to_the_text(pattern: re.Pattern[str]) -> None:
    """The texts repeat something. Twice the text may take three times as long, not four times."""
    for part in PARTS:
        texts = [(part * 20_000)[:length] + end for length in (5_000, 20_000) for end in ("", "!")]
        if isinstance(pattern.pattern, bytes):
            texts = [text.encode() for text in texts]
        assert seconds_on_an_idle_core(partial(match, pattern, texts)) < 0.5, part


def match(pattern: re.Pattern[str], texts: list[str]) -> None:
    for text in texts:
        pattern.fullmatch(text)
        pattern.match(text)


@pytest.mark.parametrize("value", ["9" * 10**6 + "s", "1h" * 10**6, "1.5" * 10**6, "." * 10**6])
def test_long_durations_are_refused_unread(value: str) -> None:
    assert seconds("1h" * (MAX_DURATION // 2)) == 3600 * MAX_DURATION // 2

    def refuse() -> None:
        for _ in range(100):
            with pytest.raises(ValueError, match="1h30m"):
                seconds(value)

    assert seconds_on_an_idle_core(refuse) < 0.5


def test_long_messages_are_truncated_before_they_are_processed() -> None:
    def truncate() -> None:
        for _ in range(1000):
            ApiError.of(UserError("x\n" * 200_000))

    assert seconds_on_an_idle_core(truncate) < 1


SERVER = """
from echo_model import EchoModel, served
from freedive.config import ServerConfig
from freedive.server.app import serve
serve(served(EchoModel()), ServerConfig(port=0))
"""


def test_no_body_delays_other_requests() -> None:
    """A sample of the full run of bench/walk.py; the limit has a margin for busy machines."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    with walk.server([sys.executable, "-c", SERVER], environment) as url:
        visits, failures = walk.walk(url, "echo", 1_000_000, every=61, seconds=20)
    assert failures == []
    assert len(visits) > 10
    assert visits[0].health_ms < 2000, visits[0]


def test_many_log_probabilities_are_written_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    write = ChatChoice.whole

    def whole(choice: ChatChoice, delta: Delta) -> object:
        threads.add(threading.current_thread().name)
        return write(choice, delta)

    monkeypatch.setattr(ChatChoice, "whole", whole)
    with serving(EchoModel(delay_s=0)) as url:
        body = {"model": "echo", "messages": [{"role": "user", "content": "x" * 2000}], "n": 4}
        scored = {"logprobs": True, "top_logprobs": 2}
        for path, extra in (("/v1/chat/completions", scored), ("/v1/completions", {})):
            asked = body | extra if "chat" in path else {"model": "echo", "prompt": "x" * 20}
            assert httpx.post(url + path, json=asked, timeout=30).status_code == 200
    assert threads
    assert all("AnyIO" in name for name in threads)


def test_log_probabilities_of_many_answers_are_bounded() -> None:
    body = {"model": "echo", "prompt": ["x" * 1000] * 300, "echo": True, "logprobs": 5, "max_tokens": 0}
    with serving(EchoModel(delay_s=0)) as url:
        refused = httpx.post(f"{url}/v1/completions", json=body, timeout=30)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
        assert httpx.post(f"{url}/v1/completions", json=body | {"prompt": "x" * 1000}, timeout=30).status_code == 200


def test_large_answers_are_written_in_pieces_that_make_the_same_json() -> None:
    nested = {"a": [{"b": [*range(n)], "c": "é" * n} for n in range(300)], "d": [], "e": {}, "f": [[1.5, None, True]]}
    assert json.loads(encode(nested)) == nested
    long = {"x": [[*range(70_000)], {"y": "z" * 70_000}]}
    assert json.loads(encode(long)) == long


@pytest.mark.parametrize("field", ["user", "safety_identifier", "prompt_cache_key"])
def test_a_long_label_that_a_response_would_repeat_is_refused_by_name(fake_model: EchoModel, field: str) -> None:
    with serving(fake_model) as url:
        answer = httpx.post(
            f"{url}/v1/responses", json={"model": "echo", "input": "hi", field: "é" * 100_000}, timeout=10
        )
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
