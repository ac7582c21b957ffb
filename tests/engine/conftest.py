"""Fixtures of the engine's tests."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest


@pytest.fixture
def steps_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the clock by a counter of its readings, so that every step takes equally long."""
    monkeypatch.setattr("freedive.engine.executor.time", SimpleNamespace(perf_counter=count().__next__))
