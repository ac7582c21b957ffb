"""GET /v1/models."""

from __future__ import annotations

from freedive.json_object import Json
from freedive.server.models import Models, Slot
from freedive.server.routing import APIRouter


def router(models: Models) -> APIRouter:
    """Returns the routes that list models."""
    routes = APIRouter()

    @routes.get("/models", summary="List the served models")
    async def list_models() -> Json:
        return {"object": "list", "data": [_card(slot) for slot in models.slots.values()]}

    @routes.get("/models/{name:path}", summary="Describe a model")
    async def retrieve_model(name: str) -> Json:
        return _card(models.slot(name))

    return routes


def _card(slot: Slot) -> Json:
    """Returns the model object; a model that is not loaded has no ``max_context``, and 0 as ``created``."""
    return {
        "id": slot.entry.name,
        "object": "model",
        "created": slot.model.created if slot.model else 0,
        "owned_by": "freedive",
        "loaded": slot.model is not None,
        "max_context": slot.model.max_context if slot.model else None,
    }
