"""GET /api/tags, /api/ps and /api/version, POST /api/show; routes that would change model files are refused."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from fastapi.concurrency import run_in_threadpool

import freedive
from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.model_info import ModelInfo
from freedive.server.models import Models, Slot
from freedive.server.ollama.fields import ShowRequest
from freedive.server.ollama.times import moment
from freedive.server.routing import APIRouter

VERSION = "0.14.0"
"""The version of Ollama whose API this server implements; clients check whether it is new enough."""

REFUSED = {
    ("POST", "/create"): "Create a model with: freedive quantize, or freedive train",
    ("POST", "/copy"): "Use the model's own name, or serve with --alias NAME=MODEL",
    ("POST", "/push"): "Copy the file that freedive list shows",
    ("DELETE", "/delete"): "Remove it with: freedive rm",
    ("POST", "/blobs/{digest}"): "Serve a file with: freedive serve PATH",
}
"""Routes that would change files of this machine, and the remedy in their error."""


def router(models: Models) -> APIRouter:
    """Returns the routes that describe models."""
    routes = APIRouter()

    @routes.get("/version", summary="The version of Ollama's API, and of freedive")
    async def version() -> Json:
        return {"version": VERSION, "freedive": freedive.__version__}

    @routes.get("/tags", summary="List the served models")
    async def tags() -> Json:
        slots = list(models.slots.values())
        return {"models": await run_in_threadpool(lambda: [_tag(slot) for slot in slots])}

    @routes.get("/ps", summary="List the models in memory")
    async def ps() -> Json:
        return {"models": [_running(slot) for slot in models.slots.values() if slot.model]}

    @routes.post("/show", summary="Describe a model")
    async def show(body: ShowRequest) -> Json:
        return await run_in_threadpool(_shown, models.slot(body.model))

    for (method, path), remedy in REFUSED.items():
        routes.add_api_route(path, _refusal(method, path, remedy), methods=[method], include_in_schema=False)
    return routes


def _refusal(method: str, path: str, remedy: str) -> Any:
    async def refuse() -> None:
        raise UserError(f"{method} /api{path} is not supported by this server", remedy)

    return refuse


def _tag(slot: Slot) -> Json:
    modified = {"modified_at": moment(slot.entry.modified_at), "size": slot.entry.num_bytes}
    return _names(slot) | modified | {"details": _details(slot.entry.info())}


def _running(slot: Slot) -> Json:
    assert slot.model
    idle_s = 0.0 if slot.busy else time.monotonic() - slot.used_at
    return _names(slot) | {
        "size": slot.model.num_bytes,
        "size_vram": 0,
        "details": _details(slot.entry.info()),
        "expires_at": moment(time.time() + slot.keep_alive_s - idle_s),
        "context_length": slot.model.max_context,
    }


def _shown(slot: Slot) -> Json:
    info = slot.entry.info()
    return {
        "modified_at": moment(slot.entry.modified_at),
        "template": info.template,
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in info.sampling.items()),
        "details": _details(info),
        "model_info": _model_info(info),
        "capabilities": list(info.capabilities),
    }


def _names(slot: Slot) -> Json:
    """Returns name and digest of a model; the digest is that of the name, because files may have none."""
    name = slot.entry.name
    return {"name": name, "model": name, "digest": hashlib.sha256(name.encode()).hexdigest()}


def _details(info: ModelInfo) -> Json:
    return {
        "parent_model": "",
        "format": "",
        "family": info.family,
        "families": [info.family] if info.family else [],
        "parameter_size": _count(info.num_params) if info.num_params else "",
        "quantization_level": info.format,
    }


def _model_info(info: ModelInfo) -> Json:
    if not info.family:
        return {}
    return {
        "general.architecture": info.family,
        "general.parameter_count": info.num_params,
        f"{info.family}.context_length": info.max_context,
        f"{info.family}.embedding_length": info.hidden_dim,
    }


def _count(number: int) -> str:
    """Returns a number of parameters in Ollama's format: 134.5M, 30.5B."""
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"
