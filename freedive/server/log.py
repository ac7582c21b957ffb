"""One log line per finished request: caller, route, duration and token counts, never the content."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from freedive.server.request_record import Observer, RequestRecord

Facts = dict[str, Any]


def facts(record: RequestRecord) -> Facts:
    """Returns the fields that the log has for a request; times are in seconds."""
    values: Facts = {
        "time": datetime.fromtimestamp(record.began_at, UTC).isoformat(timespec="milliseconds"),
        "id": record.id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "caller": record.caller,
        "seconds": round(record.seconds, 4),
    }
    if record.ignored:
        values["ignored"] = sorted(record.ignored)
    if completions := record.completions:
        usage, timings = completions.usage, completions.timings
        values |= {
            "model": record.model,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "generated_tokens": usage.completion_tokens,
            "queue_s": round(timings.queued_s, 4),
            "first_token_s": round(timings.first_token_s, 4),
            "tokens_per_s": round(timings.tokens_per_s, 2),
            "finish": endings(record),
        }
    return values


def endings(record: RequestRecord) -> list[str]:
    """Returns how each answer ended: its finish reason, "failed", or "left" if the client disconnected."""
    if not record.completions:
        return []
    return [finish or ("failed" if record.completions.failed else "left") for finish in record.completions.finishes]


def _text(values: Facts) -> str:
    """Returns the fields on one line: time, method, route and status, then ``name=value``; "-" is an empty value."""
    words = {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in values.items()}
    head = [words.pop(name) or "-" for name in ("time", "method", "route", "status")]
    return " ".join([*head, *(f"{name}={word or '-'}" for name, word in words.items())])


WRITERS: dict[str, Callable[[Facts], str]] = {"text": _text, "json": json.dumps}


def line_log(kind: str, stream: TextIO) -> Observer:
    """Returns an observer that writes one line per request in the format ``kind``, one of :data:`WRITERS`."""

    def write(record: RequestRecord) -> None:
        print(WRITERS[kind](facts(record)), file=stream, flush=True)

    return write
