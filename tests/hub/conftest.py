"""Fixtures of the hub's tests: a local hub and a cache for each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
from standin import StandIn, serving

from freedive.hub import download, hubs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in for both hubs, without pauses between attempts."""
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    with serving(StandIn()) as state:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", state.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", state.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        yield state


@pytest.fixture
def tokens(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The Authorization header of each request for a listing."""
    asked: list[str | None] = []
    real = hubs.hugging_face

    def noting(http: httpx.Client, repository: str) -> hubs.Listing:
        asked.append(http.headers.get("authorization"))
        return real(http, repository)

    monkeypatch.setitem(hubs.HUBS, "hf", replace(hubs.HUBS["hf"], ask=noting))
    return asked
