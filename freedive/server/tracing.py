"""A span of OpenTelemetry for each request, where a collector is set and the packages are there; else nothing at all.

Names follow the semantic conventions for generative models. Never holds what was said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from freedive.errors import UserError
from freedive.server.log import endings
from freedive.server.visit import Observer, Visit

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The variables that ask for traces; OpenTelemetry reads them, and others of its own, itself."""


def tracing(environ: Mapping[str, str] = os.environ) -> Observer | None:
    """An observer that sends spans to the collector that ``environ`` names, None where it names none.

    Raises UserError where the packages are missing.
    """
    asked = next((name for name in ENDPOINTS if environ.get(name)), None)
    if asked is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        remedy = f"Install it: pip install 'freedive[otel]', or unset {asked}"
        raise UserError(f"{asked} is set, but traces need {error.name}", remedy) from None
    name = environ.get("OTEL_SERVICE_NAME", "freedive")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return spans(provider.get_tracer("freedive"))


def spans(tracer: Tracer) -> Observer:
    """An observer that makes each request a span when it has ended, under the span that the client names."""
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    def make(visit: Visit) -> None:
        context = propagator.extract({"traceparent": visit.trace_parent})
        span = tracer.start_span(
            span_name(visit), context, SpanKind.SERVER, attributes(visit), start_time=_ns(visit, visit.started_at)
        )
        if visit.answers and (first := visit.answers.timings.first_token_at):
            span.add_event("first token", timestamp=_ns(visit, first))
        if visit.failed:
            span.set_status(StatusCode.ERROR)
        span.end(_ns(visit, visit.started_at + visit.seconds))

    return make


def span_name(visit: Visit) -> str:
    """Operation and model where there is one, else method and route."""
    return f"{_operation(visit)} {visit.model}" if visit.answers else f"{visit.method} {visit.route}".rstrip()


def attributes(visit: Visit) -> dict[str, Any]:
    """By the conventions' names."""
    said: dict[str, Any] = {
        "http.request.method": visit.method,
        "http.response.status_code": visit.status,
        "http.route": visit.route,
        "enduser.id": visit.caller,
        "freedive.request.id": visit.id,
    }
    if visit.failed:
        said["error.type"] = str(visit.status) if visit.status >= 500 else "failed"
    if answers := visit.answers:
        said |= {
            "gen_ai.operation.name": _operation(visit),
            "gen_ai.provider.name": "freedive",
            "gen_ai.request.model": visit.model,
            "gen_ai.response.model": visit.model,
            "gen_ai.response.finish_reasons": endings(visit),
            "gen_ai.usage.input_tokens": answers.usage.prompt,
            "gen_ai.usage.cache_read.input_tokens": answers.usage.cached,
            "gen_ai.usage.output_tokens": answers.usage.generated,
        }
    return {name: value for name, value in said.items() if value != ""}


def _operation(visit: Visit) -> str:
    plain = visit.route.endswith("/completions") and not visit.route.endswith("/chat/completions")
    return "text_completion" if plain else "chat"


def _ns(visit: Visit, moment: float) -> int:
    """A time by ``time.perf_counter`` in nanoseconds since 1970."""
    return int((visit.began_at + moment - visit.started_at) * 1e9)
