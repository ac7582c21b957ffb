"""Routes whose bodies are parsed, and whose large answers are encoded, without blocking the event loop."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import fastapi
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from freedive.errors import UserError
from freedive.server.body import Bodies, check_json

INLINE_BYTES = 1 << 16
"""Bodies and answers up to about this size are handled at once; a thread would cost more than it saves."""
SLICE = 1024
"""Members of a list that are encoded at once, with the interpreter's lock held."""
MAX_ERRORS = 64
"""Faults of a body that are looked at: alternatives of one field have one each."""

T = TypeVar("T")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Route(APIRoute):
    """Reads a body only where the endpoint takes one, and only after the request was let in."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _encoded(endpoint), **options)

    def get_route_handler(self) -> Handler:
        handle, field = super().get_route_handler(), self.body_field
        if field is None:
            return handle

        async def handler(request: Request) -> Response:
            bodies: Bodies = request.app.state.bodies
            async with bodies.received(request) as data:
                request.state.record.num_body_bytes = len(data)
                value = await off_loop(len(data), _parsed, data, field, limiter=bodies.parsers)
            return await handle(_ParsedRequest(request.scope, request.receive, value))

        return handler


class APIRouter(fastapi.APIRouter):
    """FastAPI's, with :class:`Route`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=Route, **options)


async def off_loop(size: int, function: Callable[..., T], *args: Any, limiter: CapacityLimiter | None = None) -> T:
    """What ``function`` makes of ``args``, in a thread where their ``size`` in bytes is not small."""
    return function(*args) if size <= INLINE_BYTES else await run_sync(function, *args, limiter=limiter)


class _ParsedRequest(Request):
    """A request whose body is there as what validation has made of it; None where it has none."""

    def __init__(self, scope: Any, receive: Any, value: Any) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        return b"" if self._value is None else b"parsed"  # FastAPI only asks whether there is one

    async def json(self) -> Any:
        return self._value


def _parsed(data: bytes, field: Any) -> Any:
    """The validated value of a body, None for an empty one. Raises UserError and RequestValidationError."""
    if not data:
        return None
    check_json(data)
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        context = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([context]) from None
    except ValueError:  # Python's limit, as reading an integer takes the square of its length
        raise UserError("The body has a number of too many digits", "Send a smaller number") from None
    if value is None:
        raise UserError("The body must be a JSON object", "Send one")
    validated, errors = field.validate(value, {}, loc=("body",))
    if errors:
        raise RequestValidationError(errors[:MAX_ERRORS], body=value)
    return validated


def _encoded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """``endpoint`` with an object that it returns written as JSON, in slices, and in a thread where that takes long."""

    @functools.wraps(endpoint)
    async def call(*args: Any, **options: Any) -> Any:
        value = await endpoint(*args, **options)
        if not isinstance(value, dict):
            return value
        return Response(await off_loop(size_of(value), encode, value), media_type="application/json")

    return call


def size_of(value: Any) -> int:
    """About how many bytes ``value`` has as JSON; as soon as it is certain that they are many, no more is counted."""
    size, stack = 0, [value]
    while stack and size <= INLINE_BYTES:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            size += 4 * len(item)
            stack.extend(item[:INLINE_BYTES])
        size += 8 + len(item) if isinstance(item, str) else 8
    return size


def encode(value: Any) -> bytes:
    """``value`` as JSON in ASCII. No slice of it holds the interpreter's lock for long."""
    return "".join(_slices(value)).encode()


def _slices(value: Any) -> Iterator[str]:
    if size_of(value) <= INLINE_BYTES:
        yield json.dumps(value, separators=(",", ":"))
    elif isinstance(value, dict):
        for index, (name, item) in enumerate(value.items()):
            yield f"{',' if index else '{'}{json.dumps(str(name))}:"
            yield from _slices(item)
        yield "}" if value else "{}"
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        for index, item in enumerate(value):
            yield "," if index else "["
            yield from _slices(item)
        yield "]"
    elif isinstance(value, list) and value:
        for start in range(0, len(value), SLICE):
            yield "," if start else "["
            yield json.dumps(value[start : start + SLICE], separators=(",", ":"))[1:-1]
        yield "]"
    else:
        yield json.dumps(value)
