"""How long something takes, told so that neither a slow nor a busy machine changes it much."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

YARDSTICK_SECONDS = 0.009
"""Of :func:`yardstick` on an idle core (EPYC, Zen 4 at 2.8 GHz)."""


def yardstick() -> None:
    """A fixed piece of work, as Python does it: names made, looked up, compared."""
    table = {f"layers.{number}.weight": number for number in range(20_000)}
    assert sum(table[f"layers.{number}.weight"] for number in range(20_000)) == 20_000 * 19_999 // 2


def seconds_on_an_idle_core(call: Callable[[], object], times: int = 1) -> float:
    """Processor time of the quickest of ``times`` calls, at the best pace that the yardstick shows beside them."""
    yardsticks, calls = zip(*((_seconds(yardstick), _seconds(call)) for _ in range(times)), strict=True)
    return min(calls) / max(1.0, min(yardsticks) / YARDSTICK_SECONDS)


def _seconds(call: Callable[[], object]) -> float:
    """Without the collection of garbage, which takes long where other tests have left much to look at."""
    gc.disable()
    try:
        start = time.process_time()
        call()
        return time.process_time() - start
    finally:
        gc.enable()
