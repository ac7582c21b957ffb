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
from freedive.server.api_errors import ollama_error
from freedive.server.models import ModelEntry, Models
from freedive.server.ollama.fields import PullRequest
from freedive.server.routing import APIRouter
from freedive.server.stream import JsonLines, line, unless_disconnected, with_error_event

TICK_S = 0.5
"""Seconds between two lines of progress."""

SUCCESS = {"status": "success"}


class ClientLeft(Exception):
    """The client of a download has disconnected; the download stops, and the next request resumes it."""


@dataclass
class Progress:
    """Bytes of a download: ``total`` (0 if unknown) and ``completed``. ``wanted`` until its client disconnects."""

    total: int = 0
    completed: int = 0
    wanted: bool = True

    def advance(self, count: int) -> None:
        """Adds ``count`` bytes to ``completed``."""
        self.completed += count

    def check(self) -> None:
        """Raises ClientLeft if the client has disconnected."""
        if not self.wanted:
            raise ClientLeft


Fetch = Callable[[str, Progress], ModelEntry]
"""Downloads a model by its name or address and updates the progress. Runs in a thread. Raises UserError."""


def no_fetch(name: str, progress: Progress) -> ModelEntry:
    """Raises UserError: the ``fetch`` of servers that do not download models."""
    raise UserError("This server does not fetch models", f"Fetch the model with: freedive pull {name}", param="model")


class Pulls:
    """Downloads models for clients, one at a time, and adds them to the served models. Belongs to one event loop."""

    def __init__(self, models: Models, fetch: Fetch) -> None:
        self._models = models
        self._fetch = fetch
        self._turn = asyncio.Lock()

    async def pull(self, name: str, progress: Progress) -> None:
        """Downloads the model, unless it is served already. Raises the errors of the download.

        If the task is cancelled, the download stops, and the next download begins after that.
        """
        await self._turn.acquire()
        if name in self._models:
            return self._turn.release()
        try:
            fetching = _in_background(partial(self._fetch, name, progress))
        except BaseException:  # no thread can be started
            self._turn.release()
            raise
        fetching.add_done_callback(self._ended)
        try:
            await asyncio.shield(fetching)
        finally:
            progress.wanted = False

    def _ended(self, fetching: asyncio.Future[ModelEntry]) -> None:
        self._turn.release()
        if not (fetching.cancelled() or fetching.exception()):
            self._models.add(fetching.result())


def router(models: Models, fetch: Fetch) -> APIRouter:
    """Returns the route that downloads models."""
    routes, pulls = APIRouter(), Pulls(models, fetch)

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


def _in_background(work: Callable[[], ModelEntry]) -> asyncio.Future[ModelEntry]:
    """Returns the future result of ``work``, which runs in a daemon thread, so that the process can end at any time."""
    future: Future[ModelEntry] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="freedive-pull", daemon=True).start()
    return asyncio.wrap_future(future)


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
