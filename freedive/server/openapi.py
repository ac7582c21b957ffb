"""The OpenAPI description: FastAPI's, completed with errors and streams."""

from __future__ import annotations

from fastapi import FastAPI

from freedive.json_object import Json
from freedive.server.api_errors import Writer, anthropic_error, ollama_error, openai_error, writer_for
from freedive.server.stream import EventStream, JsonLines

STATUSES = {
    400: "The request is wrong, or asks for what is not supported",
    401: "A key is needed, or is not known",
    403: "A page from elsewhere asks",
    404: "There is no such model or thing",
    408: "The body did not come",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "The server is at its limit now",
    500: "A fault of the server's",
    503: "Something that the server needs is missing",
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
"""The schemas of what the writers of errors write."""

STREAMS: dict[Writer, str] = {ollama_error: JsonLines.media_type}
"""By the same: what streams are, where they are not server-sent events."""


def describe_routes(app: FastAPI) -> None:
    """Describe every route's errors as they are, and the streams of those that can stream."""
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

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way


def _describe(schema: Json, path: str, operation: Json) -> None:
    writer = writer_for(path)
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own, which is never sent
    error = {"application/json": {"schema": ERRORS[writer]}}
    responses |= {str(status): {"description": what, "content": error} for status, what in STATUSES.items()}
    if "stream" in body_schema(schema, operation).get("properties", {}):
        responses["200"]["content"][STREAMS.get(writer, EventStream.media_type)] = {"schema": TEXT}


def body_schema(schema: Json, operation: Json) -> Json:
    """The schema of the operation's body, empty where it has none."""
    if "requestBody" not in operation:
        return {}
    return resolve(schema, operation["requestBody"]["content"]["application/json"]["schema"])


def resolve(schema: Json, node: Json) -> Json:
    """The schema a reference stands for."""
    while "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]
    return node
