"""Routes of fine-tuning from the page, below /app/finetunes: a private API that may change with the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.auth import Auth
from freedive.server.finetunes.fields import FinetuneRequest
from freedive.server.finetunes.finetuning import SCHEME, Finetuning
from freedive.server.finetunes.runs import Run
from freedive.server.library.fields import ModelRequest
from freedive.server.library.jobs import Job, Jobs
from freedive.server.library.library import Library
from freedive.server.library.line import Line
from freedive.server.library.rights import RIGHTS, key_of
from freedive.server.models import Models
from freedive.server.routing import APIRouter
from freedive.server.stream import EventStream, event

PREFIX = "/app/finetunes"

KIND: Final = "finetune"

TICK_S = 0.5
"""Seconds between two looks at what has changed."""


class Finetunes:
    """The fine-tunings of a server, one at a time. Belongs to one event loop."""

    def __init__(self, models: Models, jobs: Jobs, finetuning: Finetuning) -> None:
        self._models, self._jobs, self._finetuning = models, jobs, finetuning
        self._line = Line("freedive-finetune")
        self._begun: dict[str, Run] = {}

    def begin(self, run: Run) -> Run:
        """Begins a run and returns it. Raises UserError if a model has its name, or another run makes it."""
        name = f"{SCHEME}{run.draft.name}"
        others = [other.draft.name.lower() for other in self.runs if not other.job.error]
        if name in self._models or run.draft.name.lower() in others:
            raise UserError(f"There is a model {name} already", "Choose another name", param="name")
        work = partial(self._finetuning.tune, run.draft, run.job.progress, run.tell)
        begun = self._jobs.begin(run.job, lambda progress: self._line.run(work, progress, self._models.add))
        self._begun[begun.id] = run
        return run

    @property
    def runs(self) -> list[Run]:
        """All runs that go on, wait or have failed."""
        self._begun = {id: run for id, run in self._begun.items() if self._jobs.holds(id)}
        return list(self._begun.values())


def router(models: Models, library: Library, jobs: Jobs, finetuning: Finetuning, auth: Auth) -> APIRouter:
    """Returns the routes that estimate, run, list and undo fine-tunings. Jobs are cancelled as others are."""
    routes = APIRouter(prefix=PREFIX, include_in_schema=False)
    finetunes = Finetunes(models, jobs, finetuning)
    estimating = CapacityLimiter(1)  # each takes a process

    @routes.get("")
    async def listed(request: Request) -> Json:
        key_of(request).require(RIGHTS[KIND])
        missing, tuned = await run_in_threadpool(lambda: (finetuning.missing(), finetuning.tuned()))
        return {"offered": finetuning.offered, "missing": missing, "tuned": tuned}

    @routes.get("/events", response_model=None)
    async def events(request: Request) -> EventStream:
        key_of(request).require(RIGHTS[KIND])
        return EventStream(_changes(finetunes, models, auth))

    @routes.post("/estimate")
    async def estimate(body: FinetuneRequest, request: Request) -> Json:
        key_of(request).require(RIGHTS[KIND])
        draft = body.draft(models.slot(body.model).entry.source or body.model)
        return await run_sync(finetuning.estimate, draft, limiter=estimating)

    @routes.post("")
    async def begin(body: FinetuneRequest, request: Request) -> Json:
        key_of(request).require(RIGHTS[KIND])
        draft = body.draft(models.slot(body.model).entry.source or body.model)
        return finetunes.begin(Run(draft, Job(KIND, body.model, draft.name))).facts()

    @routes.post("/undo")
    async def undo(body: ModelRequest, request: Request) -> Json:
        key_of(request).require(RIGHTS[KIND])
        if body.model not in models or not body.model.startswith(SCHEME):
            raise NotFound(f"There is no fine-tuned model '{body.model}' here", "Read the list again", param="model")
        name = models.slot(body.model).entry.name
        if jobs.of(name):
            raise UserError(f"'{name}' is being worked on", "Cancel this first", param="model")
        await models.release(name)
        return {"freed_bytes": await models.remove(name, partial(library.remove, name))}

    return routes


async def _changes(finetunes: Finetunes, models: Models, auth: Auth) -> AsyncGenerator[bytes, None]:
    """Yields the runs and the names of fine-tuned models whenever they have changed, until the server ends."""
    last = None
    while not auth.closing:
        names = [name for name in models.slots if name.startswith(SCHEME)]
        now = {"runs": [run.facts() for run in finetunes.runs], "tuned": names}
        if now != last:
            yield event(last := now)
        await asyncio.sleep(TICK_S)
