"""POST /api/pull: a model from a hub, served from then on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from freedive.server.api_errors import ollama_error
from freedive.server.library.line import Progress
from freedive.server.library.pulls import Pulls
from freedive.server.models import Models
from freedive.server.ollama.fields import PullRequest
from freedive.server.routing import APIRouter
from freedive.server.stream import JsonLines, line, unless_disconnected, with_error_event

TICK_S = 0.5
"""Seconds between two lines of progress."""

SUCCESS = {"status": "success"}


def router(models: Models, pulls: Pulls) -> APIRouter:
    """Returns the route that downloads models."""
    routes = APIRouter()

    @routes.post("/pull", summary="Download a model and serve it", response_model=None)
    async def pull(body: PullRequest, request: Request) -> Response:
        name = body.model.removesuffix(":latest")
        if name not in models:
            request.state.record.key.require("pull")
        if body.stream:
            lines = _lines(pulls, name)
            return JsonLines(with_error_event(lines, lambda error: line(ollama_error(error)), request.state.request_id))
        await unless_disconnected(request, pulls.pull(name, Progress()))
        return JSONResponse(SUCCESS)

    return routes


async def _lines(pulls: Pulls, name: str) -> AsyncGenerator[bytes, None]:
    yield line({"status": "pulling manifest"})
    progress = Progress()
    fetching = asyncio.ensure_future(pulls.pull(name, progress))
    try:
        while not (await asyncio.wait([fetching], timeout=TICK_S))[0]:
            if total := progress.total:
                state = {"status": f"pulling {name}", "digest": name, "total": total, "completed": progress.completed}
                yield line(state)
        await fetching
    finally:
        fetching.cancel()
    yield line(SUCCESS)
