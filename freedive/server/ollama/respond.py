"""Responses of Ollama's chat and generate: whole, or as a stream of JSON lines."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from freedive.json_object import Json
from freedive.server.api_errors import ollama_error
from freedive.server.completion_stream import Completions, Delta
from freedive.server.keys import Key
from freedive.server.logprobs import logprob_object, num_bytes
from freedive.server.ollama.fields import AnswerRequest
from freedive.server.ollama.times import moment, nanoseconds
from freedive.server.routing import encode, off_loop
from freedive.server.service import Service
from freedive.server.stream import JsonLines, line, with_error_event
from freedive.text.dialects.parser import Answer, joined

Write = Callable[[Answer], Json]
"""A function that returns a part of an answer, or all of it, in the fields of one route."""

NOTHING = Answer("", "", ())


async def respond(service: Service, request: Request, body: AnswerRequest, write: Write) -> Response:
    """Returns the response to ``body``, whole or as a stream, with the fields that ``write`` returns."""
    started = time.perf_counter()
    if not body.asks:
        return await _load_or_unload(service, request, body, write)
    completions = await service.generate(body.generation_request, request)
    if body.stream:
        lines = _lines(body, completions, write, started)
        safe_lines = with_error_event(lines, lambda error: line(ollama_error(error)), request.state.request_id)
        return JsonLines(safe_lines, lambda: line(_head(body) | write(NOTHING) | {"done": False}))
    [delta] = await completions.collect(request)

    def written() -> bytes:
        whole = _head(body) | write(joined(delta.events)) | _logprobs(completions, delta)
        return encode(whole | _end(completions, delta.finish, started))

    return Response(await off_loop(num_bytes(delta.logprobs), written), media_type="application/json")


async def _load_or_unload(service: Service, request: Request, body: AnswerRequest, write: Write) -> Response:
    """Loads or unloads the model, which is the effect of a request without a prompt."""
    key: Key = request.state.record.key
    unload = body.keep_alive == 0
    if unload:
        key.require("manage")
        await service.models.release(body.model)
    else:
        async with service.models.use(body.model, body.keep_alive if "manage" in key.may else None):
            pass
    return JSONResponse(_head(body) | write(NOTHING) | {"done": True, "done_reason": "unload" if unload else "load"})


async def _lines(
    body: AnswerRequest, completions: Completions, write: Write, started: float
) -> AsyncGenerator[bytes, None]:
    finish = None
    async with aclosing(completions.deltas()) as items:
        async for delta in items:
            finish = delta.finish
            if delta.events or delta.logprobs:
                part = write(joined(delta.events)) | _logprobs(completions, delta)
                yield line(_head(body) | part | {"done": False})
    yield line(_head(body) | write(NOTHING) | _end(completions, finish, started))


def _head(body: AnswerRequest) -> Json:
    return {"model": body.model, "created_at": moment(time.time())}


def _logprobs(completions: Completions, delta: Delta) -> Json:
    tokenizer = completions.model.tokenizer
    return {"logprobs": [logprob_object(entry, tokenizer) for entry in delta.logprobs]} if delta.logprobs else {}


def _end(completions: Completions, finish: str | None, started: float) -> Json:
    """Returns the last fields of an answer; ``load_duration`` is all time before submission to the engine."""
    timings, usage = completions.timings, completions.usage
    return {
        "done": True,
        "done_reason": "stop" if finish == "tool_calls" else finish,
        "total_duration": nanoseconds(time.perf_counter() - started),
        "load_duration": nanoseconds(timings.submitted_at - started),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(timings.prefill_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": nanoseconds(timings.decode_s),
    }
