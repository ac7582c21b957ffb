"""An OpenTelemetry span for each request, if a collector is configured.

Names follow OpenTelemetry's semantic conventions for generative models. A span has no prompt and no answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from freedive.errors import UserError
from freedive.server.log import endings
from freedive.server.request_record import Observer, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The environment variables that enable traces; OpenTelemetry reads their values itself."""


def tracing(environ: Mapping[str, str] = os.environ) -> Observer | None:
    """Returns an observer that sends spans to the collector that ``environ`` names, None if it names none.

    Raises UserError if OpenTelemetry's packages are not installed.
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
    """Returns an observer that records each finished request as a child of the span in its traceparent header."""
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    def make(record: RequestRecord) -> None:
        context = propagator.extract({"traceparent": record.trace_parent})
        span = tracer.start_span(
            span_name(record), context, SpanKind.SERVER, attributes(record), start_time=_ns(record, record.started_at)
        )
        if record.completions and (first := record.completions.timings.first_token_at):
            span.add_event("first token", timestamp=_ns(record, first))
        if record.failed:
            span.set_status(StatusCode.ERROR)
        span.end(_ns(record, record.started_at + record.seconds))

    return make


def span_name(record: RequestRecord) -> str:
    """Returns operation and model for a request with answers, else method and route."""
    return f"{_operation(record)} {record.model}" if record.completions else f"{record.method} {record.route}".rstrip()


def attributes(record: RequestRecord) -> dict[str, Any]:
    """Returns the attributes of a span by their names in the semantic conventions."""
    values: dict[str, Any] = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "http.route": record.route,
        "enduser.id": record.caller,
        "freedive.request.id": record.id,
    }
    if record.failed:
        values["error.type"] = str(record.status) if record.status >= 500 else "failed"
    if completions := record.completions:
        values |= {
            "gen_ai.operation.name": _operation(record),
            "gen_ai.provider.name": "freedive",
            "gen_ai.request.model": record.model,
            "gen_ai.response.model": record.model,
            "gen_ai.response.finish_reasons": endings(record),
            "gen_ai.usage.input_tokens": completions.usage.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": completions.usage.cached_tokens,
            "gen_ai.usage.output_tokens": completions.usage.completion_tokens,
        }
    return {name: value for name, value in values.items() if value != ""}


def _operation(record: RequestRecord) -> str:
    plain = record.route.endswith("/completions") and not record.route.endswith("/chat/completions")
    return "text_completion" if plain else "chat"


def _ns(record: RequestRecord, moment: float) -> int:
    """Converts a time of ``time.perf_counter`` to nanoseconds since 1970."""
    return int((record.began_at + moment - record.started_at) * 1e9)
