"""/docs: the API's description as a plain page, made from its OpenAPI schema, without scripts from elsewhere."""

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
"""Stands for the server's address until a visitor tells by which name it goes."""


def router(app: FastAPI, model: str) -> APIRouter:
    """The route that documents ``app``; ``model`` stands in its example."""
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
    """One entry per method and path: method, path, summary, parameters, and the fields of its body."""
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
    """A field's type in a few words: "string | list of string"."""
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
