"""What a client is told when something is wrong, in the words of the API that it speaks, with the right status."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freedive.errors import UserError

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 << 20
MAX_MESSAGE_LENGTH = 600
"""Messages may quote what the client sent, but not all of it."""

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "overloaded",
}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class BodyTooLarge(UserError):
    """A request body beyond the limit."""

    status = 413


class UnsupportedMediaType(UserError):
    """A request body that is not JSON."""

    status = 415


class ContextLengthExceeded(UserError):
    """A prompt that leaves no room for an answer in the model's context."""

    code = "context_length_exceeded"


@dataclass(frozen=True)
class Problem:
    """What is wrong, before it is written in some API's words."""

    message: str
    status: int
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: UserError) -> Problem:
        """What a user caused."""
        retry_s = getattr(error, "retry_after_s", 1)
        headers = {"Retry-After": str(retry_s)} if error.status in (429, 503) else {}
        return cls(_short(str(error)), error.status, error.param, getattr(error, "code", None), headers)

    @classmethod
    def internal(cls, request_id: str) -> Problem:
        """A fault of ours."""
        return cls(f"internal error; the server's log has it as {request_id}", 500)


Json = dict[str, Any]
Writer = Callable[[Problem], Json]
"""Writes the error object of one API."""


def openai_error(problem: Problem) -> Json:
    """OpenAI's error object."""
    return {
        "error": {
            "message": problem.message,
            "type": TYPES.get(problem.status, "invalid_request_error"),
            "param": problem.param,
            "code": problem.code or CODES.get(problem.status),
        }
    }


def anthropic_error(problem: Problem) -> Json:
    """Anthropic's error object."""
    kind = ANTHROPIC_TYPES.get(problem.status, "invalid_request_error")
    # By these words, clients know that it is time to shorten a conversation.
    start = "prompt is too long: " if problem.code == ContextLengthExceeded.code else ""
    return {"type": "error", "error": {"type": kind, "message": start + problem.message}}


def ollama_error(problem: Problem) -> Json:
    """Ollama's error object."""
    return {"error": problem.message}


WRITERS = {"/v1/messages": anthropic_error, "/anthropic/": anthropic_error, "/api/": ollama_error}
"""By the beginning of a path; elsewhere errors are OpenAI's."""


def writer_for(path: str) -> Writer:
    """Whose errors they are at ``path``."""
    return next((writer for start, writer in WRITERS.items() if path.startswith(start)), openai_error)


def error_response(problem: Problem, path: str) -> Response:
    """ASCII JSON: a client's lone surrogates, quoted in a message, have no UTF-8 form."""
    return Response(
        json.dumps(writer_for(path)(problem)), problem.status, problem.headers, media_type="application/json"
    )


def _short(message: str) -> str:
    """One line of it."""
    message = " ".join(message.splitlines())
    return message if len(message) <= MAX_MESSAGE_LENGTH else message[:MAX_MESSAGE_LENGTH] + "..."


def add_handlers(app: FastAPI) -> None:
    """Answer every kind of error with an error object."""

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return error_response(Problem.of(error), request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, param = explain(error.errors())
        return error_response(Problem(_short(message), 400, param), request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        where = f": {request.method} {request.url.path}" if error.status_code in (404, 405) else ""
        return error_response(Problem(_short(f"{error.detail}{where}"), error.status_code), request.url.path)


def explain(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The first validation error as (message, param)."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}", None
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return (f"'{param}': {first['msg']}" if param else f"the body must be a JSON object: {first['msg']}"), param


class Gate:
    """The outermost layer: names each request, bounds its body, adds headers, and survives what nobody expected."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def tagged_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(
                    SECURITY_HEADERS | {"X-Request-Id": request_id, "Request-Id": request_id}
                )
            await send(message)

        try:
            if scope["method"] == "POST":
                receive = await _with_body(scope, receive)
            await self.app(scope, receive, tagged_send)
        except ClientDisconnect:
            pass
        except UserError as error:
            await error_response(Problem.of(error), scope["path"])(scope, receive, tagged_send)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not started:
                await error_response(Problem.internal(request_id), scope["path"])(scope, receive, tagged_send)


async def _with_body(scope: Scope, receive: Receive) -> Receive:
    """Read the whole body, then hand out that and whatever follows it. A browser asks before it sends JSON abroad."""
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("the body must be JSON", "Send the header Content-Type: application/json")
    too_large = BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", "Send less at once")
    length = headers.get("content-length", "0")
    if len(length) > 12 or int(length) > MAX_BODY_BYTES:
        raise too_large
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay
