"""Fixtures shared by all rooms."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from freedive.hub.sources import resolve

# A runner may have been started with Ctrl-C ignored, as background jobs are; the processes that tests start and
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real default model, fetched once into the user's cache: SmolLM2-135M-Instruct as GGUF Q4_1."""
    return resolve("smollm2")
