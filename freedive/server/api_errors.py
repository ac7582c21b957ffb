"""Errors as each API reports them: status codes, error objects and HTTP responses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from freedive.errors import ContextLengthExceeded, UserError
from freedive.json_object import Json
from freedive.server.http_errors import status_of
from freedive.server.request_body import client_name, synonyms_of

MAX_MESSAGE_LENGTH = 600
"""Characters of the longest error message; a message may quote text that the client sent."""

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
class ApiError:
    """An error, independent of the API that reports it."""

    message: str
    status: int
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: UserError) -> ApiError:
        """Returns the error that reports ``error``, with fields named as the client of this request does."""
        status, headers = status_of(error), {}
        message, param = str(error), client_name(error.param)
        if error.param and param != error.param:
            message = re.sub(rf"\b{re.escape(error.param)}\b", param or "", message)
        if status == 401:
            headers = {"WWW-Authenticate": 'Bearer realm="freedive"'}
        elif status in (429, 503):
            headers = {"Retry-After": str(getattr(error, "retry_after_s", 1))}
        return cls(_short(message), status, param, getattr(error, "code", None), headers)

    @classmethod
    def internal(cls, request_id: str) -> ApiError:
        """Returns the error that reports an internal failure; the server's log has the details under ``request_id``."""
        return cls(f"Internal error; the server's log has it as {request_id}", 500)


@contextmanager
def prompt_named(name: str) -> Iterator[None]:
    """Sets the ``param`` of a UserError about the prompt to ``name``, the request field that holds the prompt."""
    try:
        yield
    except UserError as error:
        error.param = name if error.param == "prompt" else error.param
        raise


Writer = Callable[[ApiError], Json]
"""A function that returns the error object of one API."""


def openai_error(error: ApiError) -> Json:
    """Returns OpenAI's error object."""
    return {
        "error": {
            "message": error.message,
            "type": TYPES.get(error.status, "invalid_request_error"),
            "param": error.param,
            "code": error.code or CODES.get(error.status),
        }
    }


def anthropic_error(error: ApiError) -> Json:
    """Returns Anthropic's error object."""
    kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    # Clients recognise this prefix and then shorten the conversation.
    start = "prompt is too long: " if error.code == ContextLengthExceeded.code else ""
    details = {"details": {"error_code": error.code}} if error.code else {}
    return {"type": "error", "error": {"type": kind, "message": start + error.message, **details}}


def ollama_error(error: ApiError) -> Json:
    """Returns Ollama's error object."""
    return {"error": error.message}


WRITERS = {"/v1/messages": anthropic_error, "/anthropic/": anthropic_error, "/api/": ollama_error}
"""The error writer by path prefix; all other paths use :func:`openai_error`."""


def writer_for(path: str) -> Writer:
    """Returns the error writer of the API that ``path`` belongs to."""
    return next((writer for start, writer in WRITERS.items() if path.startswith(start)), openai_error)


def error_response(error: ApiError, path: str) -> Response:
    """Returns ``error`` as an HTTP response in the format of the API that ``path`` belongs to.

    The JSON is ASCII, because a message may quote a lone surrogate from the client, which UTF-8 cannot encode.
    """
    return Response(json.dumps(writer_for(path)(error)), error.status, error.headers, media_type="application/json")


def _short(message: str) -> str:
    """Returns ``message`` on one line, cut to :data:`MAX_MESSAGE_LENGTH` characters."""
    line = " ".join(message[: MAX_MESSAGE_LENGTH + 1].splitlines())
    return line if len(message) <= MAX_MESSAGE_LENGTH else line[:MAX_MESSAGE_LENGTH] + "..."


def add_handlers(app: FastAPI) -> None:
    """Adds handlers to ``app`` that answer every kind of error with an error object."""

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return error_response(ApiError.of(error), request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, param = explain(error.errors(), error.body)
        return error_response(ApiError(_short(message), 400, param), request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        where = f": {request.method} {request.url.path}" if error.status_code in (404, 405) else ""
        return error_response(ApiError(_short(f"{error.detail}{where}"), error.status_code), request.url.path)


FAULT_TEXTS: Mapping[str, str] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_type": "must be a text",
    "union_tag_invalid": "has a type that is none of {expected_tags}",
    "union_tag_not_found": "must be an object with a type",
    "value_error": "is wrong: {error}",
}
"""The text for each error type of pydantic; for other types pydantic's own message is used."""


def explain(errors: Sequence[Any], body: Any = None) -> tuple[str, str | None]:
    """Returns the pydantic errors of ``body`` as one message and the path of the field (message, param).

    If a field allows several types, the errors deepest in ``body`` are reported: they belong to the closest match.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}", None
    paths = [_path(error, body) for error in errors]
    furthest = max((path for path in paths if path[: len(paths[0])] == paths[0]), key=len)
    faults = dict.fromkeys(_fault_text(error) for error, path in zip(errors, paths, strict=True) if path == furthest)
    param = ".".join(furthest) or None
    return (f"'{param}' {' or '.join(faults)}" if param else "The body must be a JSON object"), param


def _path(error: Any, body: Any) -> list[str]:
    """Returns the path of ``error`` in ``body`` as the client wrote it, without pydantic's names of union members."""
    where, *loc = error["loc"]
    if where != "body":
        return [str(part) for part in loc]
    path = []
    for part in loc:
        key = _key(part, body)
        if key is not None:
            body = body[key]
            path.append(str(key))
        elif error["type"] == "missing" and part is loc[-1]:
            path.append(str(part))
    return path


def _key(part: str | int, body: Any) -> str | int | None:
    """Returns the index or the field name, maybe a synonym, under which ``body`` has ``part``; None if it has not."""
    if isinstance(body, list):
        return part if part in range(len(body)) else None
    if not isinstance(body, dict):
        return None
    return part if part in body else next((name for name in synonyms_of(str(part)) if name in body), None)


def _fault_text(error: Any) -> str:
    """Returns what is wrong; pydantic's own messages begin with a kind of value, such as "List should"."""
    text = FAULT_TEXTS.get(error["type"])
    return text.format(**error.get("ctx", {})) if text else re.sub(r"^[A-Z][a-z]+ should", "must", error["msg"])
