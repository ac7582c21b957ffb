"""How chat and plain completions answer: whole, or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Protocol

from fastapi import Request
from fastapi.responses import Response

from freedive.engine.request import Timings
from freedive.server.answers import Answers, Said, Usage
from freedive.server.logprobs import num_bytes
from freedive.server.long_json import long_json
from freedive.server.openai.fields import GenerationRequest
from freedive.server.problems import openai_error
from freedive.server.routing import off_loop
from freedive.server.stream import EventStream, event, survived

Json = dict[str, Any]


class Choice(Protocol):
    """Writes one choice of an answer, as a whole or piece by piece."""

    object: str
    chunk_object: str
    id_prefix: str
    nothing: ClassVar[Json]
    """A chunk's choice that adds nothing."""

    def whole(self, said: Said) -> Json: ...

    def chunk(self, said: Said) -> Json | None:
        """None where nothing is certain yet."""


def ending(said: Said) -> Json:
    """Why a choice is over; ``stop_reason`` is vLLM's field for what OpenAI's words do not tell apart."""
    detail = {} if said.stop_reason is None else {"stop_reason": said.stop_reason}
    return {"finish_reason": said.finish} | detail


async def respond(request: Request, body: GenerationRequest, answers: Answers, choices: Sequence[Choice]) -> Response:
    """The answers as ``choices`` write them."""
    kind = choices[0]
    head: Json = {
        "id": kind.id_prefix + uuid.uuid4().hex,
        "object": kind.chunk_object if body.stream else kind.object,
        "created": int(time.time()),
        "model": answers.model.name,
    }
    if body.stream:
        chunks = _chunks(head, body, answers, choices)
        nothing = event(head | {"choices": [kind.nothing]} | _no_usage(body))
        return EventStream(survived(chunks, lambda problem: event(openai_error(problem)), head["id"]), lambda: nothing)
    whole = await answers.whole(request)

    written = (choice.whole(said) for choice, said in zip(choices, whole, strict=True))
    fields = head | {"usage": usage_object(answers.usage)} | _timings(body, answers)
    return await long_json(fields, "choices", written, sum(map(_size, whole)))


def _size(said: Said) -> int:
    """About how many bytes it makes."""
    return 64 * len(said.events) + num_bytes(said.logprobs) + num_bytes(said.prompt_logprobs)


async def _chunks(
    head: Json, body: GenerationRequest, answers: Answers, choices: Sequence[Choice]
) -> AsyncGenerator[bytes, None]:
    options = body.stream_options
    usage = _no_usage(body)
    async with aclosing(answers.said()) as items:
        async for said in items:
            if options and options.continuous_usage_stats:
                usage = {"usage": usage_object(answers.usage)}
            if chunk := await off_loop(_size(said), _chunk, head | usage, choices[said.index], said):
                yield chunk
    if usage or body.timings:
        total = {"usage": usage_object(answers.usage)} if usage else {}
        yield event(head | {"choices": []} | total | _timings(body, answers))
    yield b"data: [DONE]\n\n"


def _chunk(head: Json, choice: Choice, said: Said) -> bytes | None:
    written = choice.chunk(said)
    return event(head | {"choices": [written]}) if written else None


def _no_usage(body: GenerationRequest) -> Json:
    return {"usage": None} if body.stream_options and body.stream_options.include_usage else {}


def usage_object(usage: Usage) -> Json:
    """OpenAI's usage, and DeepSeek's names for what the cache saved."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        "prompt_cache_hit_tokens": usage.cached,
        "prompt_cache_miss_tokens": usage.prompt - usage.cached,
    }


def _timings(body: GenerationRequest, answers: Answers) -> Json:
    return {"timings": timings_object(answers.timings, answers.usage)} if body.timings else {}


def timings_object(timings: Timings, usage: Usage) -> Json:
    """llama.cpp's names; of the first answer."""
    num_read = usage.prompt - usage.cached
    return {
        "cache_n": usage.cached,
        "prompt_n": num_read,
        "prompt_ms": 1000 * timings.prefill_s,
        "prompt_per_second": num_read / timings.prefill_s if timings.prefill_s else 0.0,
        "predicted_n": timings.num_generated,
        "predicted_ms": 1000 * timings.decode_s,
        "predicted_per_second": timings.tokens_per_s,
        "queue_ms": 1000 * timings.queued_s,
    }
