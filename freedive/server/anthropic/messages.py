"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from freedive.engine.generation import Usage
from freedive.json_object import Json
from freedive.server.anthropic.blocks import BlockStream, content
from freedive.server.anthropic.fields import Conversation, MessagesRequest
from freedive.server.api_errors import anthropic_error
from freedive.server.completion_stream import Completions, Delta
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.server.stream import EventStream, event, with_error_event
from freedive.text.dialects.dialect import Event, Thought

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def router(service: Service) -> APIRouter:
    """Returns the routes of Anthropic's Messages API."""
    routes = APIRouter()

    @routes.post("/messages", summary="Answer a conversation", response_model=None)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        return await _respond(request, body, await service.generate(body.generation_request, request))

    @routes.post("/messages/count_tokens", summary="Count the tokens of a conversation")
    async def count_tokens(body: Conversation, request: Request) -> dict[str, int]:
        _, prompts = await service.prompts(body.generation_request, request)
        return {"input_tokens": sum(len(prompt.tokens) for prompt in prompts)}

    return routes


def named(data: Json) -> bytes:
    """Returns a server-sent event that has the type of its data as name."""
    return event(data, data["type"])


class MessageStream(EventStream):
    """A stream that sends Anthropic's event ``ping`` as keep-alive."""

    keep_alive = named({"type": "ping"})


async def _respond(request: Request, body: MessagesRequest, completions: Completions) -> Response:
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": completions.model.name}
    if body.stream:
        blocks = BlockStream()
        events = _events(head, body, completions, blocks)
        safe_events = with_error_event(events, lambda error: named(anthropic_error(error)), head["id"])
        return MessageStream(safe_events, lambda: b"".join(map(named, blocks.wait(completions.thinks))))
    [delta] = await completions.collect(request)
    usage = completions.usage
    written = {"content": content(_shown(body, delta.events))}
    return JSONResponse(head | written | _ending(body, delta, usage) | {"usage": usage_object(usage)})


async def _events(
    head: Json, body: MessagesRequest, completions: Completions, blocks: BlockStream
) -> AsyncGenerator[bytes, None]:
    """Yields the streaming events of an answer; the usage at the start is preliminary, the one at the end is final."""
    nothing: Json = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_object(completions.usage),
    }
    yield named({"type": "message_start", "message": head | nothing})
    async with aclosing(completions.deltas()) as items:
        async for delta in items:
            for each in _shown(body, delta.events):
                for data in blocks.write(each):
                    yield named(data)
            if delta.finish:
                usage, ending = completions.usage, _ending(body, delta, completions.usage)
                for data in blocks.stop():
                    yield named(data)
                yield named({"type": "message_delta", "delta": ending, "usage": usage_object(usage)})
                yield named({"type": "message_stop"})


def _shown(body: Conversation, events: Sequence[Event]) -> Sequence[Event]:
    """Returns ``events``, with empty thoughts if the client does not want to read them."""
    if body.shows_thoughts:
        return events
    return [replace(each, text="") if isinstance(each, Thought) else each for each in events]


def _ending(body: MessagesRequest, delta: Delta, usage: Usage) -> Json:
    """Returns Anthropic's stop reason for an answer whose last delta is ``delta``."""
    reason = STOP_REASONS[delta.finish or "stop"]
    if reason == "end_turn" and delta.stop_string is not None:
        reason = "stop_sequence"
    if reason == "max_tokens" and usage.completion_tokens < body.max_tokens:
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": delta.stop_string}


def usage_object(usage: Usage) -> Json:
    """Returns Anthropic's usage: ``input_tokens`` are without cached tokens, and writing to the cache is free."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.thought_tokens},
    }
