"""A hub of our own, and a cache of our own, for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from standin import StandIn, serving

from freedive.hub import download


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in for both hubs; attempts follow one another without a pause."""
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    with serving(StandIn()) as state:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", state.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", state.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        yield state
