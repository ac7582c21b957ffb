"""A line for each request that has ended: who asked what for how long, never what was said."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from freedive.server.visit import Observer, Visit

Facts = dict[str, Any]


def facts(visit: Visit) -> Facts:
    """What a log keeps of a request; times in seconds."""
    said: Facts = {
        "time": datetime.fromtimestamp(visit.began_at, UTC).isoformat(timespec="milliseconds"),
        "id": visit.id,
        "method": visit.method,
        "route": visit.route,
        "status": visit.status,
        "caller": visit.caller,
        "seconds": round(visit.seconds, 4),
    }
    if visit.ignored:
        said["ignored"] = sorted(visit.ignored)
    if answers := visit.answers:
        usage, timings = answers.usage, answers.timings
        said |= {
            "model": visit.model,
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "generated_tokens": usage.generated,
            "queue_s": round(timings.queued_s, 4),
            "first_token_s": round(timings.first_token_s, 4),
            "tokens_per_s": round(timings.tokens_per_s, 2),
            "finish": endings(visit),
        }
    return said


def endings(visit: Visit) -> list[str]:
    """How each answer ended: stop, length, tool_calls, failed, or left by its client."""
    if not visit.answers:
        return []
    return [finish or ("failed" if visit.answers.failed else "left") for finish in visit.answers.finishes]


def _text(said: Facts) -> str:
    """On one line, as ``name=value`` where the value does not speak for itself; "-" stands for nothing."""
    words = {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in said.items()}
    head = [words.pop(name) or "-" for name in ("time", "method", "route", "status")]
    return " ".join([*head, *(f"{name}={word or '-'}" for name, word in words.items())])


WRITERS: dict[str, Callable[[Facts], str]] = {"text": _text, "json": json.dumps}


def line_log(kind: str, stream: TextIO) -> Observer:
    """An observer that writes a line of ``kind``, one of :data:`WRITERS`."""

    def write(visit: Visit) -> None:
        print(WRITERS[kind](facts(visit)), file=stream, flush=True)

    return write
