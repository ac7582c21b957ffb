"""Detects an engine that makes no progress."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)


class Watchdog:
    """Measures the time since the last progress; an engine without progress for ``limit_s`` seconds has stalled."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._progress_at = time.perf_counter()
        self._has_stalled = False

    def reset(self) -> None:
        """Records progress."""
        self._progress_at = time.perf_counter()

    def stalled_s(self, is_busy: bool) -> float:
        """Returns the seconds without progress if they exceed the limit, else 0; an idle engine cannot stall.

        Logs the beginning of each stall.
        """
        seconds = time.perf_counter() - self._progress_at if is_busy else 0.0
        stalled = seconds > self._limit_s
        if stalled and not self._has_stalled:
            log.error("the engine has made no progress for %d s", seconds)
        self._has_stalled = stalled
        return seconds if stalled else 0.0
