"""/docs: the API's reference as a plain page, made from its OpenAPI schema, without scripts of other hosts."""

from __future__ import annotations

import json
from functools import cache
from html import escape

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from freedive.json_object import Json
from freedive.server.openapi import body_schema, resolve
from freedive.server.routing import APIRouter

ADDRESS = "http://address-of-this-server/"
"""The placeholder of the server's address in the rendered page; each request replaces it by its own base URL."""


def router(app: FastAPI, model: str) -> APIRouter:
    """Returns the route that documents ``app``, with ``model`` in its example."""
    routes = APIRouter()
    environment = Environment(loader=PackageLoader("freedive.server", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("docs.html")

    @cache
    def rendered() -> str:
        return template.render(operations=operations(app.openapi()), base_url=ADDRESS, model=model)

    @routes.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse((await run_in_threadpool(rendered)).replace(ADDRESS, escape(str(request.base_url))))

    return routes


def operations(schema: Json) -> list[Json]:
    """Returns one entry for each method and path: method, path, summary, and the fields of the body."""
    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("summary", ""),
            "fields": _fields(schema, operation),
        }
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def _fields(schema: Json, operation: Json) -> list[Json]:
    body = body_schema(schema, operation)
    required = body.get("required", [])
    return [
        {
            "name": name,
            "type": _type(schema, field),
            "default": "required" if name in required else field.get("default", ""),
        }
        for name, field in body.get("properties", {}).items()
    ]


def _type(schema: Json, node: Json) -> str:
    """Returns a field's type as text, such as "string | list of string"."""
    node = resolve(schema, node)
    for options in ("anyOf", "oneOf"):
        if options in node:
            return " | ".join(_type(schema, option) for option in node[options] if option != {"type": "null"})
    if "enum" in node:
        return " | ".join(json.dumps(value) for value in node["enum"] if value is not None) or "unsupported"
    if node.get("type") == "array":
        return f"list of ({inner})" if "|" in (inner := _type(schema, node["items"])) else f"list of {inner}"
    if node.get("type") == "object" and "properties" in node:
        return "{" + ", ".join(f"{name}: {_type(schema, field)}" for name, field in node["properties"].items()) + "}"
    return str(node.get("const", node.get("type", "any")))
