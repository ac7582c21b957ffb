"""A made-up history of two models: ten minutes with questions of three lengths, a queue, and a fault."""

from __future__ import annotations

from math import sin
from typing import Any

from freedive.server.history import EVERY_S, NUM_SAMPLES, History

GB = 10**9


def busy(history: History, number: int) -> dict[str, Any]:
    """Takes the place of :meth:`History.after`."""
    samples = [_sample(n, loads) for n, loads in enumerate(_loads(), 1) if n > number]
    about = {"started_at": 0, "every_s": EVERY_S, "num_samples": NUM_SAMPLES, "troubles": {}}
    return about | {"total_bytes": 16 * GB, "available_bytes": 9 * GB, "samples": samples}


def _loads() -> list[dict[str, dict[str, int]]]:
    """Returns the counters of both models at each moment."""
    loads, before = [], {name: {"num_generated": 0, "num_read": 0, "num_cached": 0} for name in ("small", "large")}
    for n in range(NUM_SAMPLES):
        running = max(0, round(2.4 + 2 * sin(n / 19) + 1.2 * sin(n / 5)))
        for name, speed in (("small", 30), ("large", 9)):
            asked = n % (11 if name == "small" else 37) == 0
            done = {"num_generated": round(speed * running * (1 + 0.1 * sin(n))), "num_read": 900 * asked}
            done["num_cached"] = done["num_read"] * (n % 3)
            before[name] = {field: before[name][field] + more for field, more in done.items()}
        pages = {"num_pages": 512, "free_pages": 512 - 40 * running, "known_pages": min(480, 60 + 2 * n)}
        now = {"running": running, "waiting": max(0, running - 4), "num_restored": 0} | pages
        loads.append({name: now | counted for name, counted in before.items()})
    return loads


def _sample(number: int, models: dict[str, dict[str, int]]) -> dict[str, Any]:
    first = 0.4 + 0.3 * sin(number / 7) if number % 11 == 1 else None
    counts = {"failed": int(number > 210), "refused": number // 80}
    return {
        "number": number,
        "at_s": EVERY_S * number,
        "resident_bytes": 5 * GB + number * 2_000_000,
        "first_token_s": first,
        **counts,
        "models": models,
    }
