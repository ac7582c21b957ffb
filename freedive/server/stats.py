"""GET /v1/stats and /v1/stats/experts: load, latencies, memory and callers of the server."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Sequence

from fastapi import Request

import freedive
from freedive import machine
from freedive.json_object import Json
from freedive.server.keys import Key
from freedive.server.model import Model
from freedive.server.models import Models
from freedive.server.request_record import RequestRecord
from freedive.server.routing import APIRouter

NUM_REMEMBERED = 1000
PERCENTILES = (50, 90, 99)


class Stats:
    """An observer that stores the latencies of the last requests, and counts all requests by caller."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._recent: deque[tuple[str, dict[str, float]]] = deque(maxlen=NUM_REMEMBERED)
        self._callers: dict[str, tuple[str, Counter[str]]] = {}

    def __call__(self, record: RequestRecord) -> None:
        """Counts a finished request, if it has answers."""
        if not record.completions:
            return
        usage, timings = record.completions.usage, record.completions.timings
        counts = {"requests": 1, "prompt_tokens": usage.prompt_tokens, "generated_tokens": usage.completion_tokens}
        self._callers.setdefault(record.key.id, (record.caller, Counter()))[1].update(counts)
        if timings.first_token_at is not None:
            times = {"queue_s": timings.queued_s, "first_token_s": timings.first_token_s, "request_s": record.seconds}
            times |= {"token_s": 1 / timings.tokens_per_s} if timings.tokens_per_s else {}
            self._recent.append((record.key.id, times))

    def report(self, models: Models, key: Key) -> Json:
        """Returns statistics of all callers for a key that may manage the server, else only those of ``key``.

        Latencies are percentiles over the last ``NUM_REMEMBERED`` requests of the server.
        """
        sees_all = "manage" in key.may
        recent = [times for tenant, times in self._recent if sees_all or tenant == key.id]
        callers = [counted for tenant, counted in self._callers.items() if sees_all or tenant == key.id]
        by_name: dict[str, Counter[str]] = {}
        for name, counts in callers:  # several keys may have had the same name
            by_name.setdefault(name, Counter()).update(counts)
        return {
            "version": freedive.__version__,
            "uptime_s": time.monotonic() - self._started_at,
            "memory": {"peak_bytes": machine.peak_memory(), "available_bytes": machine.available_memory()},
            "models": {model.name: _numbers(model) for model in models.loaded} if sees_all else {},
            "latencies": {
                name: percentiles([times[name] for times in recent if name in times])
                for name in ("queue_s", "first_token_s", "token_s", "request_s")
            },
            "callers": by_name,
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Returns the :data:`PERCENTILES` of ``values`` (nearest-rank), none if there are no values."""
    ordered = sorted(values)
    return {f"p{part}": ordered[math.ceil(part / 100 * len(ordered)) - 1] for part in PERCENTILES if ordered}


def _numbers(model: Model) -> Json:
    return {
        "bytes": model.num_bytes,
        "resident_bytes": model.resident_bytes(),
        "lossy": model.lossy,
        "experts_on_disk": cache.numbers if (cache := model.expert_cache()) else None,
        **dataclasses.asdict(model.engine.stats()),
    }


def router(stats: Stats, models: Models) -> APIRouter:
    """Returns the routes of the statistics."""
    routes = APIRouter()

    @routes.get("/v1/stats", tags=["server"], summary="Load, latencies and memory")
    async def report(request: Request) -> Json:
        return stats.report(models, request.state.record.key)

    @routes.get("/v1/stats/experts", tags=["server"], summary="How often each expert of each layer was chosen")
    async def experts(request: Request) -> Json:
        request.state.record.key.require("manage")
        loaded = models.loaded
        caches = {model.name: cache for model in loaded if (cache := model.expert_cache())}
        return {
            "models": {model.name: model.expert_load() for model in loaded},
            "on_disk": {name: [layer._asdict() for layer in cache.layers] for name, cache in caches.items()},
        }

    return routes
