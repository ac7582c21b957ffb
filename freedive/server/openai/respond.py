"""Responses of OpenAI's chat and text completions: whole, or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import ClassVar, Protocol

from fastapi import Request
from fastapi.responses import Response

from freedive.engine.generation import Timings, Usage
from freedive.json_object import Json
from freedive.server.api_errors import openai_error
from freedive.server.completion_stream import Completions, Delta
from freedive.server.logprobs import num_bytes
from freedive.server.long_json import long_json
from freedive.server.openai.fields import BaseCompletionRequest
from freedive.server.routing import off_loop
from freedive.server.stream import EventStream, event, with_error_event


class Choice(Protocol):
    """Writes one choice of an answer, whole or in chunks."""

    object: str
    chunk_object: str
    id_prefix: str
    nothing: ClassVar[Json]
    """The choice of a chunk that adds nothing to the answer."""

    def whole(self, delta: Delta) -> Json: ...

    def chunk(self, delta: Delta) -> Json | None:
        """Returns the choice of the next chunk, None if ``delta`` adds nothing."""


def ending(delta: Delta) -> Json:
    """Returns why a choice has ended; vLLM's field ``stop_reason`` is more exact than OpenAI's ``finish_reason``."""
    detail = {} if delta.stop_reason is None else {"stop_reason": delta.stop_reason}
    return {"finish_reason": delta.finish} | detail


async def respond(
    request: Request, body: BaseCompletionRequest, completions: Completions, choices: Sequence[Choice]
) -> Response:
    """Returns the response to ``body``, whole or as a stream, with the choices that ``choices`` write."""
    kind = choices[0]
    head: Json = {
        "id": kind.id_prefix + uuid.uuid4().hex,
        "object": kind.chunk_object if body.stream else kind.object,
        "created": int(time.time()),
        "model": completions.model.name,
    }
    if lossy := completions.model.lossy:
        head["lossy"] = lossy
    if body.stream:
        chunks = _chunks(head, body, completions, choices)
        nothing = event(head | {"choices": [kind.nothing]} | _no_usage(body))
        return EventStream(
            with_error_event(chunks, lambda error: event(openai_error(error)), head["id"]), lambda: nothing
        )
    whole = await completions.collect(request)

    written = (choice.whole(delta) for choice, delta in zip(choices, whole, strict=True))
    fields = head | {"usage": usage_object(completions.usage)} | _timings(body, completions)
    return await long_json(fields, "choices", written, sum(map(_size, whole)))


def _size(delta: Delta) -> int:
    """Returns the approximate size of ``delta`` as JSON, in bytes."""
    return 64 * len(delta.events) + num_bytes(delta.logprobs) + num_bytes(delta.prompt_logprobs)


async def _chunks(
    head: Json, body: BaseCompletionRequest, completions: Completions, choices: Sequence[Choice]
) -> AsyncGenerator[bytes, None]:
    options = body.stream_options
    usage = _no_usage(body)
    async with aclosing(completions.deltas()) as items:
        async for delta in items:
            if options and options.continuous_usage_stats:
                usage = {"usage": usage_object(completions.usage)}
            if chunk := await off_loop(_size(delta), _chunk, head | usage, choices[delta.index], delta):
                yield chunk
    if usage or body.timings:
        total = {"usage": usage_object(completions.usage)} if usage else {}
        yield event(head | {"choices": []} | total | _timings(body, completions))
    yield b"data: [DONE]\n\n"


def _chunk(head: Json, choice: Choice, delta: Delta) -> bytes | None:
    written = choice.chunk(delta)
    return event(head | {"choices": [written]}) if written else None


def _no_usage(body: BaseCompletionRequest) -> Json:
    return {"usage": None} if body.stream_options and body.stream_options.include_usage else {}


def usage_object(usage: Usage) -> Json:
    """Returns OpenAI's usage, with DeepSeek's fields for cached and computed prompt tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.thought_tokens},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }


def _timings(body: BaseCompletionRequest, completions: Completions) -> Json:
    return {"timings": timings_object(completions.timings, completions.usage)} if body.timings else {}


def timings_object(timings: Timings, usage: Usage) -> Json:
    """Returns the timings of the first answer in llama.cpp's fields."""
    num_read = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": num_read,
        "prompt_ms": 1000 * timings.prefill_s,
        "prompt_per_second": num_read / timings.prefill_s if timings.prefill_s else 0.0,
        "predicted_n": timings.num_generated,
        "predicted_ms": 1000 * timings.decode_s,
        "predicted_per_second": timings.tokens_per_s,
        "queue_ms": 1000 * timings.queued_s,
    }
