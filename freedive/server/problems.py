"""What a client is told when something is wrong, in the words of the API that it speaks, with the right status."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from freedive.errors import ContextLengthExceeded, UserError

OPTION = re.compile(r"literal\[.*|[A-Z]\w+")
"""What validation calls one of the types that a field may have, in the middle of a path."""

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
    408: "request_timeout",
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
        headers = {}
        if error.status == 401:
            headers = {"WWW-Authenticate": 'Bearer realm="freedive"'}
        elif error.status in (429, 503):
            headers = {"Retry-After": str(getattr(error, "retry_after_s", 1))}
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
    line = " ".join(message[: MAX_MESSAGE_LENGTH + 1].splitlines())
    return line if len(message) <= MAX_MESSAGE_LENGTH else line[:MAX_MESSAGE_LENGTH] + "..."


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
    path = itertools.takewhile(lambda part: not OPTION.fullmatch(str(part)), first["loc"][1:])
    param = ".".join(map(str, path)) or None
    return (f"'{param}': {first['msg']}" if param else f"the body must be a JSON object: {first['msg']}"), param
