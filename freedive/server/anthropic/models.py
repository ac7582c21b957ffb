"""GET /anthropic/v1/models, and /v1/models for requests with Anthropic's version header."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from freedive.json_object import Json
from freedive.server.models import Models, Slot
from freedive.server.routing import APIRouter

PREFIX = "/anthropic/v1"


class ByVersion:
    """Middleware that sends /v1/models to Anthropic's routes if the request has Anthropic's version header.

    Without that header, the path belongs to OpenAI's API.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "anthropic-version" in Headers(scope=scope):
            path: str = scope["path"]
            if path == "/v1/models" or path.startswith("/v1/models/"):
                scope = {**scope, "path": PREFIX + path.removeprefix("/v1")}
        await self.app(scope, receive, send)


def router(models: Models) -> APIRouter:
    """Returns the routes that list models; mount them at ``PREFIX``."""
    routes = APIRouter()

    @routes.get("/models", summary="List the served models, on one page")
    async def list_models() -> Json:
        names = list(models.slots)
        cards = [_card(slot) for slot in models.slots.values()]
        return {"data": cards, "has_more": False, "first_id": names[0], "last_id": names[-1]}

    @routes.get("/models/{name:path}", summary="Describe a model")
    async def retrieve_model(name: str) -> Json:
        return _card(models.slot(name))

    return routes


def _card(slot: Slot) -> Json:
    """Returns the model object; a model that is not loaded has no limits, and 1970 as creation time."""
    max_context = slot.model.max_context if slot.model else None
    return {
        "type": "model",
        "id": slot.entry.name,
        "display_name": slot.entry.name,
        "created_at": datetime.fromtimestamp(slot.model.created if slot.model else 0, UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": max_context,
        "max_tokens": max_context,
    }
