"""/docs: the API's description as a plain page, made from its OpenAPI schema, without scripts from elsewhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

Json = dict[str, Any]


def router(app: FastAPI, model: str) -> APIRouter:
    """The route that documents ``app``; ``model`` stands in its example."""
    routes = APIRouter()
    environment = Environment(loader=PackageLoader("freedive.server", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("docs.html")

    @routes.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        described = operations(app.openapi())
        return HTMLResponse(template.render(operations=described, base_url=request.base_url, model=model))

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
    if "requestBody" not in operation:
        return []
    body = _resolve(schema, operation["requestBody"]["content"]["application/json"]["schema"])
    required = body.get("required", [])
    return [
        {
            "name": name,
            "type": _type(schema, field),
            "default": "required" if name in required else field.get("default", ""),
        }
        for name, field in body["properties"].items()
    ]


def _resolve(schema: Json, node: Json) -> Json:
    """The schema a reference stands for."""
    while "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]
    return node


def _type(schema: Json, node: Json) -> str:
    """A field's type in a few words: "string | list of string"."""
    node = _resolve(schema, node)
    if options := node.get("anyOf") or node.get("oneOf"):
        return " | ".join(_type(schema, option) for option in options)
    if "enum" in node:
        return " | ".join(f'"{value}"' for value in node["enum"])
    if node.get("type") == "array":
        return f"list of ({inner})" if "|" in (inner := _type(schema, node["items"])) else f"list of {inner}"
    if node.get("type") == "object" and "properties" in node:
        return "{" + ", ".join(f"{name}: {_type(schema, field)}" for name, field in node["properties"].items()) + "}"
    return str(node.get("const", node.get("type", "any")))
