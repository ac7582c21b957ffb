"""Measures durations almost independently of the speed and the load of the machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

YARDSTICK_SECONDS = 0.009
"""The duration of :func:`yardstick` on an idle core (EPYC, Zen 4 at 2.8 GHz)."""


def yardstick() -> None:
    """A fixed amount of Python work: strings are made, looked up and compared."""
    table = {f"layers.{number}.weight": number for number in range(20_000)}
    assert sum(table[f"layers.{number}.weight"] for number in range(20_000)) == 20_000 * 19_999 // 2


def seconds_on_an_idle_core(call: Callable[[], object], times: int = 1) -> float:
    """Returns the processor time of the fastest of ``times`` calls, scaled by the best time of the yardstick between
    them."""
    yardsticks, calls = zip(*((_seconds(yardstick), _seconds(call)) for _ in range(times)), strict=True)
    return min(calls) / max(1.0, min(yardsticks) / YARDSTICK_SECONDS)


def _seconds(call: Callable[[], object]) -> float:
    """Measures the processor time of a call without garbage collection, which depends on what earlier tests left."""
    gc.disable()
    try:
        start = time.process_time()
        call()
        return time.process_time() - start
    finally:
        gc.enable()
