"""Streaming responses, keep-alive comments, and cancellation when a client disconnects."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from freedive.engine.generation import TokenOutput
from freedive.errors import Unavailable, UserError
from freedive.server.api_errors import ApiError
from freedive.server.model import Generation

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_ALIVE_S = 10.0
"""Seconds without output after which a comment is sent, so that no proxy or client times out in a long prefill."""
COMMENTS = 5
"""Comments before empty data events are sent instead: some clients disconnect after 300 s without data."""

MAX_READ = 256
"""The most generations of one request that are read at the same time; further ones are read when these end."""


async def interleave(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, TokenOutput], None]:
    """Yields the outputs of several generations as they arrive, each with the index of its generation.

    Closing the iterator cancels all generations that still run. Raises Unavailable if the engine cancels a generation,
    which it does when it shuts down.
    """
    arrived: asyncio.Queue[tuple[int, TokenOutput | Exception | None]] = asyncio.Queue(1)  # bounds unread outputs
    coming = enumerate(generations)

    async def read() -> None:
        for index, generation in coming:
            try:
                async for output in generation:
                    await arrived.put((index, output))
            except Exception as error:
                await arrived.put((index, error))
        await arrived.put((-1, None))

    readers = [asyncio.ensure_future(read()) for _ in generations[:MAX_READ]]
    num_reading = len(readers)
    try:
        while num_reading:
            index, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_reading -= 1
                continue
            if item.finish_reason == "cancelled":
                raise Unavailable("The server is shutting down", "Send the request again later")
            yield index, item
    finally:
        for generation in generations:
            generation.cancel()
        await _ended(*readers)


class EventStream(Response):
    """Server-sent events from a generator, which is closed as soon as the client disconnects.

    ``nothing`` returns an event that adds nothing to the answer. It is called only while the generator waits.
    """

    media_type = "text/event-stream"
    keep_alive = b": waiting\n\n"

    def __init__(self, events: AsyncGenerator[bytes, None], nothing: Callable[[], bytes] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self.events = events
        self.nothing = nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def body(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left, upcoming = asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(anext(self.events))
        silence = 0
        try:
            while not left.done():
                await asyncio.wait((left, upcoming), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if upcoming.done():
                    silence = 0
                    await body(upcoming.result())
                    upcoming = asyncio.ensure_future(anext(self.events))
                elif not left.done() and (sign := self._sign(silence := silence + 1)):
                    await body(sign)
        except StopAsyncIteration:
            await body(b"", more=False)
        finally:
            await _ended(left, upcoming)
            await self.events.aclose()

    def _sign(self, silence: int) -> bytes:
        """Returns the data to send after ``silence`` periods without output."""
        return self.nothing() if self.nothing and silence > COMMENTS else self.keep_alive


class JsonLines(EventStream):
    """A stream of JSON objects, one per line, without keep-alive comments."""

    media_type = "application/x-ndjson"
    keep_alive = b""


def event(data: Any, name: str = "") -> bytes:
    """Returns one server-sent event with ``data`` as JSON."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + line(data) + b"\n"


def line(data: Any) -> bytes:
    """Returns ``data`` as one line of JSON."""
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


async def with_error_event(
    events: AsyncGenerator[bytes, None], write: Callable[[ApiError], bytes], id: str
) -> AsyncGenerator[bytes, None]:
    """Yields ``events`` and, if they fail, a last event from ``write``; logs a failure of the server under ``id``."""
    async with aclosing(events):
        try:
            async for data in events:
                yield data
        except UserError as error:
            yield write(ApiError.of(error))
        except Exception:
            logger.exception("answer %s failed", id)
            yield write(ApiError.internal(id))


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of ``work``; cancels it and raises ClientDisconnect if the client disconnects first."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _ended(task, left)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*futures: asyncio.Future[Any]) -> None:
    """Cancels the futures and waits for their end; ignores their errors, which were reported or do not matter."""
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
