"""The server process: its port, its start and shutdown, and its pages."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, EchoStats, serving

from freedive.errors import Unavailable, UserError
from freedive.server import stream
from freedive.server.app import check_port, listen

ROOT = Path(__file__).parents[2]


def test_a_busy_port_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"Port {port} on 127.0.0.1 is in use. Choose another with --port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("256.1.1.1", 0), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_listened_at(host: str, port: int) -> None:
    with pytest.raises(UserError, match="Check --host and --port"):
        check_port(host, port)


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_serve_prints_its_address_and_ends_on_ctrl_c_in_the_middle_of_an_answer() -> None:
    code = (
        "from echo_model import EchoModel, served;"
        "from freedive.config import ServerConfig;"
        "from freedive.server.app import serve;"
        "serve(served(EchoModel(delay_s=0.05, script={'endless': 'word ' * 800})), ServerConfig(port=0))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://[\d.:]+", process.stderr.readline())[0]
        body = {"model": "echo", "prompt": "endless", "max_tokens": 3000, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # it would close the answer if it were dropped
            next(lines)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0  # the answer would take 150 s
        assert process.stderr.read() == ""


def test_health_reports_the_load_of_each_model(live_server: str) -> None:
    health = httpx.get(f"{live_server}/health").json()
    idle = EchoStats(running=0, waiting=0, num_read=0, num_generated=0, free_pages=64)
    assert health == {"status": "ok", "models": {"echo": dataclasses.asdict(idle)}}


def test_the_docs_page_names_every_route_and_field_and_loads_nothing_from_elsewhere(live_server: str) -> None:
    page = httpx.get(f"{live_server}/docs").text
    paths = httpx.get(f"{live_server}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"} <= paths.keys()
    for word in [*paths, "max_completion_tokens", "repetition_penalty", "string | list of string"]:
        assert word in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_pages_forbid_scripts_and_styles_of_their_own(live_server: str) -> None:
    response = httpx.get(live_server)
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*(src=|application/json))|<style|\sstyle=|\son\w+=", response.text)


def test_a_silent_stream_is_kept_alive_and_closed_when_the_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.01)
    closed: list[Any] = []
    sent: list[Any] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield stream.event({"a": 1})
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    async def receive() -> dict[str, str]:
        while len(sent) < 5:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message.get("body"))

    asyncio.run(stream.EventStream(events())({"type": "http"}, receive, send))
    assert sent[:5] == [None, b'data: {"a":1}\n\n', *[b": waiting\n\n"] * 3]
    assert closed


def test_a_stream_that_waits_long_sends_data_that_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.005)
    text, chat = {"prompt": "hello"}, {"messages": [{"role": "user", "content": "hello"}]}
    asked = {"model": "echo", "stream": True, "max_tokens": 1}
    with serving(EchoModel(delay_s=0.3)) as url:
        answers = {
            route: httpx.post(url + route, json=asked | body if route[1] == "v" else {"model": "echo"} | body).text
            for route, body in (
                ("/v1/chat/completions", chat),
                ("/v1/completions", text),
                ("/api/chat", chat | {"options": {"num_predict": 1}}),
            )
        }
        responses = httpx.post(
            f"{url}/v1/responses", json={"model": "echo", "input": "hello", "stream": True, "max_output_tokens": 1}
        ).text
        messages = httpx.post(f"{url}/v1/messages", json=asked | chat).text
    assert answers["/v1/chat/completions"].count('"delta":{},') > 5
    assert answers["/v1/completions"].count('"text":"",') > 5
    assert answers["/api/chat"].count('"content":""},"done":false') > 5
    assert responses.count("event: response.in_progress") > 5
    numbers = [json.loads(line[6:])["sequence_number"] for line in responses.splitlines() if line[:5] == "data:"]
    assert numbers == list(range(len(numbers)))
    assert messages.count('"delta":{"type":"text_delta","text":""}') > 5
    assert messages.count("event: content_block_start") == messages.count("event: content_block_stop") == 1
    assert messages.count("event: ping") == stream.COMMENTS
