"""POST /api/pull: a model from a hub, served from then on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Thread

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from freedive.errors import UserError
from freedive.server.models import Known, Models
from freedive.server.ollama.fields import PullRequest
from freedive.server.problems import ollama_error
from freedive.server.routing import APIRouter
from freedive.server.stream import JsonLines, line, survived, unless_disconnected

TICK_S = 0.5
"""Time between two lines of progress."""

SUCCESS = {"status": "success"}


@dataclass
class Progress:
    """Bytes of a download: in all, once that is known, and those that have come."""

    total: int = 0
    completed: int = 0

    def advance(self, count: int) -> None:
        """So many more have come."""
        self.completed += count


Fetch = Callable[[str, Progress], Known]
"""Fetches a model by its name or address, and tells how far it is. Runs in a thread; raises UserError."""


def no_fetch(name: str, progress: Progress) -> Known:
    """For servers of models that are given."""
    raise UserError("this server fetches no models", f"Fetch it with: freedive pull {name}", param="model")


def router(models: Models, fetch: Fetch) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/pull", summary="Fetch a model and serve it", response_model=None)
    async def pull(body: PullRequest, request: Request) -> Response:
        name = body.model.removesuffix(":latest")
        if body.stream:
            lines = _lines(models, fetch, name)
            return JsonLines(survived(lines, lambda problem: line(ollama_error(problem)), request.state.request_id))
        await unless_disconnected(request, _fetched(models, fetch, name, Progress()))
        return JSONResponse(SUCCESS)

    return routes


async def _fetched(models: Models, fetch: Fetch, name: str, progress: Progress) -> None:
    if name not in models.slots:
        models.add(await _in_background(partial(fetch, name, progress)))


def _in_background(work: Callable[[], Known]) -> asyncio.Future[Known]:
    """The result of ``work``, which goes on when the client leaves, but keeps no process from ending."""
    future: Future[Known] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(future)


async def _lines(models: Models, fetch: Fetch, name: str) -> AsyncGenerator[bytes, None]:
    yield line({"status": "pulling manifest"})
    progress = Progress()
    fetching = asyncio.ensure_future(_fetched(models, fetch, name, progress))
    try:
        while not (await asyncio.wait([fetching], timeout=TICK_S))[0]:
            if total := progress.total:
                state = {"status": f"pulling {name}", "digest": name, "total": total, "completed": progress.completed}
                yield line(state)
        await fetching
    finally:
        fetching.cancel()
    yield line(SUCCESS)
