"""Prometheus metrics: the engines' current statistics, and counts and times of finished requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fastapi import Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from freedive.engine.generation import Timings
from freedive.server.log import endings
from freedive.server.models import Models
from freedive.server.request_record import RequestRecord
from freedive.server.routing import APIRouter

GAUGES = {
    "running": ("requests_running", "Requests that are running"),
    "waiting": ("requests_waiting", "Requests that wait in the queue"),
    "free_pages": ("cache_free_pages", "Free pages of the key-value cache"),
    "num_pages": ("cache_pages", "Pages of the key-value cache"),
}
COUNTERS = {
    "num_requests": ("engine_requests", "Requests that the engine accepted"),
    "num_steps": ("engine_steps", "Steps of the model"),
    "num_computed": ("computed_tokens", "Input tokens computed, draft tokens included"),
    "num_read": ("read_tokens", "Tokens of prompts computed, not found in the cache"),
    "num_generated": ("generated_tokens", "Tokens of answers"),
    "num_drafted": ("drafted_tokens", "Draft tokens that were verified"),
    "num_accepted": ("accepted_tokens", "Draft tokens that were accepted"),
}
"""Metric name (without ``freedive_``) and description of each field that counts; all other fields are gauges."""

EXPERTS = {
    "slots_bytes": ("expert_slots_bytes", "Memory for experts that stay on disk", GaugeMetricFamily),
    "used_bytes": ("expert_slots_used_bytes", "The part of this memory that is filled", GaugeMetricFamily),
    "hits": ("expert_hits", "Experts that a step found in memory", CounterMetricFamily),
    "misses": ("expert_misses", "Experts that a step had to read from disk", CounterMetricFamily),
    "read_bytes": ("expert_read_bytes", "Bytes of experts read from disk", CounterMetricFamily),
    "stalled_s": ("expert_stalled_seconds", "Time that steps waited for experts", CounterMetricFamily),
}
"""The numbers of experts that stay on disk: name, description and kind."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = tuple(4**power for power in range(10))

HISTOGRAMS = {
    "first_token": ("time_to_first_token_seconds", "From submission to the first token", SECONDS),
    "token": ("time_per_output_token_seconds", "From one token of an answer to the next, on average", SECONDS),
    "queue": ("queue_seconds", "From submission until the first step", SECONDS),
    "prefill": ("prefill_seconds", "From the first step to the first token", SECONDS),
    "request": ("request_seconds", "From a request's head to the end of its answer", SECONDS),
    "prompt": ("prompt_tokens", "Tokens of a request's prompts", TOKENS),
    "answer": ("answer_tokens", "Tokens of a request's answers", TOKENS),
}
"""Histograms of requests with answers, by model: name, description and upper bounds of the buckets."""


class Engines(Collector):
    """Collects the engine statistics of every loaded model."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for model in self._models.loaded:
            for field, value in dataclasses.asdict(model.engine.stats()).items():
                if isinstance(value, int | float):
                    family = families.setdefault(field, _family(field))
                    family.add_metric([model.name], value)
        yield from families.values()
        yield from self._experts()

    def _experts(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        caches = {model.name: cache.numbers for model in self._models.loaded if (cache := model.expert_cache())}
        for field, (name, about, kind) in EXPERTS.items():
            family = kind(f"freedive_{name}", about, labels=["model"])
            for model, numbers in caches.items():
                family.add_metric([model], numbers[field])
            if caches:
                yield family


def _family(field: str) -> GaugeMetricFamily | CounterMetricFamily:
    if field in COUNTERS:
        name, about = COUNTERS[field]
        return CounterMetricFamily(f"freedive_{name}", about, labels=["model"])
    name, about = GAUGES.get(field, (f"engine_{field}", f"The engine's {field}"))
    return GaugeMetricFamily(f"freedive_{name}", about, labels=["model"])


class Metrics:
    """An observer that counts finished requests in its own Prometheus registry."""

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(Engines(models))
        self._requests = Counter(
            "freedive_requests",
            "Requests that have ended",
            ["route", "status", "model"],
            registry=self.registry,
        )
        self._completions = Counter(
            "freedive_answers", "Answers by how they ended", ["model", "finish"], registry=self.registry
        )
        self._histograms = {
            key: Histogram(f"freedive_{name}", about, ["model"], buckets=buckets, registry=self.registry)
            for key, (name, about, buckets) in HISTOGRAMS.items()
        }

    def __call__(self, record: RequestRecord) -> None:
        """Counts a finished request."""
        self._requests.labels(record.route or "none", record.status, record.model).inc()
        if not record.completions:
            return
        for finish in endings(record):
            self._completions.labels(record.model, finish).inc()
        self._observe(record.model, "request", record.seconds)
        self._observe(record.model, "prompt", record.completions.usage.prompt_tokens)
        self._observe(record.model, "answer", record.completions.usage.completion_tokens)
        for generation in record.completions.generations:
            self._observe_timings(record.model, generation.timings)

    def _observe_timings(self, model: str, timings: Timings) -> None:
        """Observes the timings of the phases that a generation has reached."""
        if timings.started_at is not None:
            self._observe(model, "queue", timings.queued_s)
        if timings.first_token_at is not None:
            self._observe(model, "first_token", timings.first_token_s)
            self._observe(model, "prefill", timings.prefill_s)
        if timings.tokens_per_s:
            self._observe(model, "token", 1 / timings.tokens_per_s)

    def _observe(self, model: str, key: str, value: float) -> None:
        self._histograms[key].labels(model).observe(value)


def router(metrics: Metrics) -> APIRouter:
    """Returns the route of the metrics."""
    routes = APIRouter()

    @routes.get("/metrics", tags=["server"], summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def scrape(request: Request) -> Response:
        request.state.record.key.require("manage")  # differences between two scrapes reveal other tenants' requests
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"Content-Type": media_type})

    return routes
