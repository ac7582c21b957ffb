"""Fixtures shared by all rooms."""

from __future__ import annotations

from pathlib import Path

import pytest

from freedive.hub.sources import resolve


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real default model, fetched once into the user's cache: SmolLM2-135M-Instruct as GGUF Q4_1."""
    return resolve("smollm2")
