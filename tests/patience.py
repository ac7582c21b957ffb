"""Waits for what a test expects. The limit only ends a test that would wait for ever: slow machines stay far below."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 60.0


def wait_until(true: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    """Returns when ``true`` returns something true; ``why`` says what there was instead."""
    ends_at = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ends_at, why()
        time.sleep(0.002)


async def wait_for(true: Callable[[], object]) -> None:
    """Waits as :func:`wait_until` does, and lets the event loop run meanwhile."""
    ends_at = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.002)
