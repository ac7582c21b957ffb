"""Answers of a model with lossy settings say so, in every API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving

LOSSY = {"experts_per_token": 4, "prefer_cached_experts": 0.5}
MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "hello"},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(EchoModel(lossy=LOSSY)) as url:
        yield url


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_every_api_names_lossy_settings_in_a_header(url: str, path: str, stream: bool) -> None:
    answer = httpx.post(f"{url}{path}", json={"model": "echo", "stream": stream, **BODIES[path]})
    assert answer.status_code == 200
    assert answer.headers["X-Freedive-Lossy"] == "experts_per_token=4, prefer_cached_experts=0.5"


def test_chat_completions_and_statistics_have_them_as_fields(url: str) -> None:
    body = {"model": "echo", "messages": MESSAGES}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).json()["lossy"] == LOSSY
    streamed = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert all(chunk["lossy"] == LOSSY for chunk in chunks)
    assert httpx.get(f"{url}/v1/stats").json()["models"]["echo"]["lossy"] == LOSSY


def test_an_exact_answer_has_neither() -> None:
    with serving(EchoModel()) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "echo", "messages": MESSAGES})
    assert "X-Freedive-Lossy" not in answer.headers
    assert "lossy" not in answer.json()
