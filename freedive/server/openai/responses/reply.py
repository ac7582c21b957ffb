"""One response of OpenAI's Responses API: its object, and its stream of events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from freedive.engine.generation import Usage
from freedive.json_object import Json
from freedive.server.api_errors import ApiError
from freedive.server.completion_stream import Completions
from freedive.server.openai.responses.fields import SEALED, ResponseRequest
from freedive.server.openai.responses.items import new_id
from freedive.server.openai.responses.output import Output
from freedive.server.openai.responses.store import Store
from freedive.server.openai.responses.tools import Calls
from freedive.server.routing import off_loop, size_of
from freedive.server.stream import event, unless_disconnected

ECHOED = {
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "store",
    "tool_choice",
    "top_logprobs",
    "user",
}
"""Fields of the request that the response repeats."""


class Reply:
    """The response to ``body``, which continues ``conversation``. Read it once, with ``whole`` or ``stream``.

    The response is stored for ``owner``, unless it fails or its client disconnects before the end.
    """

    def __init__(
        self, body: ResponseRequest, completions: Completions, conversation: Sequence[Json], store: Store, owner: str
    ) -> None:
        self._body = body
        self._completions = completions
        self._conversation = conversation
        self._store = store
        self._owner = owner
        self._output = Output(completions.model.tokenizer, Calls(body.tools), seals=SEALED in body.include)
        self._num_told = 0
        self.head = _head(body, completions)

    async def whole(self, request: Request) -> Json:
        """Returns the response object. Raises ClientDisconnect if the client of ``request`` disconnects first."""

        async def last() -> Json:
            async for told in self._events():  # noqa: B007 - the last one is wanted
                pass
            response: Json = told["response"]
            return response

        return await unless_disconnected(request, last())

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yields the response as server-sent events."""
        async with aclosing(self._events()) as events:
            async for told in events:
                yield await off_loop(size_of(told), self._written, told)

    def in_progress(self) -> bytes:
        """Returns the event that says that the response is still being generated."""
        return self._written({"type": "response.in_progress", "response": self.head})

    def failed(self, error: ApiError) -> bytes:
        """Returns the last event of a response that failed."""
        code = {429: "rate_limit_exceeded"}.get(error.status, "server_error")
        details = {"code": code, "message": error.message}
        response = self.head | {"status": "failed", "error": details, "output": self._output.items}
        return self._written({"type": "response.failed", "response": response})

    async def _events(self) -> AsyncGenerator[Json, None]:
        yield {"type": "response.created", "response": self.head}
        yield {"type": "response.in_progress", "response": self.head}
        finish = None
        async with aclosing(self._completions.deltas()) as items:
            async for delta in items:
                finish = delta.finish
                for told in self._output.grow(delta):
                    yield told
        response = self.head | _end(finish) | {"output": self._output.items, "usage": _usage(self._completions.usage)}
        if self._body.store:
            conversation = [*self._conversation, *self._output.items]
            await run_in_threadpool(self._store.add, self._owner, response, conversation)
        yield {"type": f"response.{response['status']}", "response": response}

    def _written(self, told: Json) -> bytes:
        self._num_told += 1
        return event(told | {"sequence_number": self._num_told - 1}, told["type"])


def _head(body: ResponseRequest, completions: Completions) -> Json:
    """Returns the object of a response that has just started, with the sampling settings in effect."""
    sampling = completions.model.sampling(**body.sampling())
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": completions.model.name,
        "output": [],
        "usage": None,
        "background": False,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning": body.reasoning.model_dump(),
        "service_tier": "default",
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}} | body.text.model_dump(exclude_none=True, by_alias=True),
        "tools": [tool.model_dump() for tool in body.tools],
        "top_p": sampling.top_p,
        "truncation": "disabled",
        **body.model_dump(include=ECHOED),
    }


def _end(finish: str | None) -> Json:
    if finish == "length":
        return {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return {"status": "completed", "completed_at": int(time.time())}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thought_tokens},
        "total_tokens": usage.total_tokens,
    }
