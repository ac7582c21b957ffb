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
"""Bodies and responses up to this size in bytes are handled in the event loop; a thread would cost more time."""
SLICE = 1024
"""Items of a list that are encoded in one call, which holds the interpreter's lock."""
MAX_ERRORS = 64
"""Validation errors of a body that are examined: each member of a union has its own."""

T = TypeVar("T")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Route(APIRoute):
    """A route that reads the body only if the endpoint takes one, after the request was authenticated."""

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
    """FastAPI's router, with :class:`Route` as the class of its routes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=Route, **options)


async def off_loop(size: int, function: Callable[..., T], *args: Any, limiter: CapacityLimiter | None = None) -> T:
    """Returns ``function(*args)``, computed in a thread if ``size`` is more than :data:`INLINE_BYTES`."""
    return function(*args) if size <= INLINE_BYTES else await run_sync(function, *args, limiter=limiter)


class _ParsedRequest(Request):
    """A request whose body was parsed and validated before FastAPI sees it; None if it has no body."""

    def __init__(self, scope: Any, receive: Any, value: Any) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        return b"" if self._value is None else b"parsed"  # FastAPI only checks whether it is empty

    async def json(self) -> Any:
        return self._value


def _parsed(data: bytes, field: Any) -> Any:
    """Returns the validated value of a body, None for an empty one. Raises UserError and RequestValidationError."""
    if not data:
        return None
    check_json(data)
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        context = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([context]) from None
    except ValueError:  # Python's limit for digits, because parsing an integer takes quadratic time
        raise UserError("The body has a number with too many digits", "Send a smaller number") from None
    if value is None:
        raise UserError("The body must be a JSON object", "Send one")
    validated, errors = field.validate(value, {}, loc=("body",))
    if errors:
        raise RequestValidationError(errors[:MAX_ERRORS], body=value)
    return validated


def _encoded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``endpoint`` with the dict that it returns encoded as JSON, in a thread if it is long."""

    @functools.wraps(endpoint)
    async def call(*args: Any, **options: Any) -> Any:
        value = await endpoint(*args, **options)
        if not isinstance(value, dict):
            return value
        return Response(await off_loop(size_of(value), encode, value), media_type="application/json")

    return call


def size_of(value: Any) -> int:
    """Returns the approximate size of ``value`` as JSON, in bytes; stops counting beyond :data:`INLINE_BYTES`."""
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
    """Returns ``value`` as ASCII JSON, encoded in slices so that other threads can take the interpreter's lock."""
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
