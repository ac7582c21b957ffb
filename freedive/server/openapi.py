"""The OpenAPI schema: FastAPI's, completed with the schemas of errors and streams."""

from __future__ import annotations

from fastapi import FastAPI

from freedive.json_object import Json
from freedive.server.api_errors import Writer, anthropic_error, ollama_error, openai_error, writer_for
from freedive.server.stream import EventStream, JsonLines

STATUSES = {
    400: "The request is invalid, or has an unsupported field or value",
    401: "The key is missing or not valid",
    403: "The key lacks a right, or a page of another origin sent the request",
    404: "The model or object does not exist",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "The server or the key is at its limit",
    500: "Internal error of the server",
    503: "The server or a resource that it needs is unavailable",
}


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _with_optional(node: Json, **fields: Json) -> Json:
    return node | {"properties": node["properties"] | fields}


TEXT: Json = {"type": "string"}
PERHAPS_TEXT: Json = {"type": ["string", "null"]}

ERRORS: dict[Writer, Json] = {
    openai_error: _object(error=_object(message=TEXT, type=TEXT, param=PERHAPS_TEXT, code=PERHAPS_TEXT)),
    anthropic_error: _object(
        type={"const": "error"},
        error=_with_optional(_object(type=TEXT, message=TEXT), details=_object(error_code=TEXT)),
    ),
    ollama_error: _object(error=TEXT),
}
"""The schema of error objects by error writer."""

STREAMS: dict[Writer, str] = {ollama_error: JsonLines.media_type}
"""The media type of streams by error writer; all other APIs use server-sent events."""


def describe_routes(app: FastAPI) -> None:
    """Adds errors and streams to the OpenAPI schema of ``app``."""
    derived = app.openapi

    def openapi() -> Json:
        if not app.openapi_schema:
            schema = derived()
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    _describe(schema, path, operation)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this assignment


def _describe(schema: Json, path: str, operation: Json) -> None:
    writer = writer_for(path)
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's default, which is never sent
    error = {"application/json": {"schema": ERRORS[writer]}}
    responses |= {str(status): {"description": what, "content": error} for status, what in STATUSES.items()}
    if "stream" in body_schema(schema, operation).get("properties", {}):
        responses["200"]["content"][STREAMS.get(writer, EventStream.media_type)] = {"schema": TEXT}


def body_schema(schema: Json, operation: Json) -> Json:
    """Returns the schema of the operation's body, an empty one if it has no body."""
    if "requestBody" not in operation:
        return {}
    return resolve(schema, operation["requestBody"]["content"]["application/json"]["schema"])


def resolve(schema: Json, node: Json) -> Json:
    """Returns the schema that ``node`` refers to, or ``node`` itself if it has no $ref."""
    while "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]
    return node
