"""Bodies with odd members for every route of a server with a real engine: a sample of bench/request_fuzz.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import request_fuzz
import walk


@pytest.fixture(scope="module")
def url() -> object:
    with walk.server([sys.executable, "-m", "freedive", "serve", "nano", "--port", "0"]) as url:
        yield url


def test_mutated_requests_are_answered_and_freed(url: str) -> None:
    statuses, faults = request_fuzz.attack(url, "nano", 300, seed=7)
    assert faults == []
    assert statuses[200] > 50, "some are answered, or nothing but the edge was tried"
    request_fuzz.wait_until_idle(url, "nano")


ODD: tuple[Any, ...] = ([], {}, [{"type": "reasoning"}], {"a": 1}, 5, True)


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_types_that_are_not_strings_are_refused(url: str, odd: object) -> None:
    part = {"type": odd, "text": "hi"}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [part]},
        {"role": "user", "content": [part]},
    ]
    bodies = {
        "/v1/responses": {"input": [{"type": odd, "content": [part], "role": "assistant"}]},
        "/v1/chat/completions": {"messages": turns, "tools": [{"type": odd, "function": {"name": "f"}}]},
        "/v1/messages": {"messages": turns, "max_tokens": 4, "tools": [{"type": odd, "name": "f", "input_schema": {}}]},
        "/api/chat": {"messages": [{"role": "user", "content": [part]}], "tools": [{"type": odd}]},
    }
    for route, body in bodies.items():
        assert httpx.post(f"{url}{route}", json={"model": "nano"} | body, timeout=30).status_code == 400, route
