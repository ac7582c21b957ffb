"""What the tests of Ollama's API share: a conversation, its answer, the official client, and its refusals."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import pytest

HELLO = [{"role": "user", "content": "hello"}]
SAID = "user: hello"
"""The echo model's answer to ``HELLO``."""


@pytest.fixture(scope="module")
def ollama_client(live_server: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=live_server) as client:
        yield client


def refusal(caught: pytest.ExceptionInfo[ollama.ResponseError], status: int = 400) -> str:
    """The message of an error that the server must have answered with ``status``."""
    assert caught.value.status_code == status
    return str(caught.value.error)
