"""Routes of the page's models, below /app/library: a private API that may change with the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated

from fastapi import Query, Request
from fastapi.concurrency import run_in_threadpool

from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.auth import Auth
from freedive.server.library.fields import ModelRequest, QuantizeRequest
from freedive.server.library.jobs import Job, Jobs
from freedive.server.library.library import Library
from freedive.server.library.line import Line
from freedive.server.library.pulls import Pulls
from freedive.server.library.rights import RIGHTS, key_of
from freedive.server.models import Models, Slot
from freedive.server.routing import APIRouter
from freedive.server.stream import EventStream, event

PREFIX = "/app/library"

TICK_S = 0.5
"""Seconds between two looks at what has changed."""

Name = Annotated[str, Query(max_length=1000)]


def router(models: Models, library: Library, pulls: Pulls, jobs: Jobs, auth: Auth) -> APIRouter:
    """Returns the routes that list, load, download, quantise and remove models."""
    routes = APIRouter(prefix=PREFIX, include_in_schema=False)
    _add_lists(routes, models, library, jobs, auth)
    _add_loading(routes, models)
    _add_jobs(routes, models, library, pulls, jobs)
    _add_removal(routes, models, library, jobs)
    return routes


def _add_lists(routes: APIRouter, models: Models, library: Library, jobs: Jobs, auth: Auth) -> None:
    @routes.get("")
    async def listed(request: Request) -> Json:
        key = key_of(request)
        known = await run_in_threadpool(library.models)
        facts = {model["name"]: model for model in known}
        served = [_served(slot) | facts.pop(name, {}) | {"served": True} for name, slot in models.slots.items()]
        others = [model | {"served": False} for model in facts.values()] if "pull" in key.may else []
        whole = {"models": [*served, *others], "may": list(key.may)}
        if "pull" not in key.may:
            return whole
        return whole | {"free_bytes": await run_in_threadpool(library.free_bytes), "formats": list(library.formats)}

    @routes.get("/card")
    async def card(model: Name, request: Request) -> Json:
        if model in models:
            source = models.slot(model).entry.source or model
        else:
            key_of(request).require("pull")  # it may have to be read from a hub
            source = await _known(library, model)
        return await run_in_threadpool(library.card, source) | {"model": model}

    @routes.get("/events", response_model=None)
    async def events(request: Request) -> EventStream:
        return EventStream(_changes(models, jobs, auth, with_jobs="pull" in key_of(request).may))


async def _changes(models: Models, jobs: Jobs, auth: Auth, *, with_jobs: bool) -> AsyncGenerator[bytes, None]:
    """Yields the states of models and jobs whenever they have changed, until the server ends."""
    last = None
    while not auth.closing:
        now = {"states": _states(models), "jobs": jobs.facts() if with_jobs else []}
        if now != last:
            yield event(last := now)
        await asyncio.sleep(TICK_S)


def _add_loading(routes: APIRouter, models: Models) -> None:
    @routes.post("/load")
    async def load(body: ModelRequest) -> Json:
        async with models.use(body.model):
            return {"states": _states(models)}

    @routes.post("/unload")
    async def unload(body: ModelRequest, request: Request) -> Json:
        key_of(request).require("manage")
        await models.release(body.model)
        return {"states": _states(models)}


def _add_jobs(routes: APIRouter, models: Models, library: Library, pulls: Pulls, jobs: Jobs) -> None:
    quantizing = Line("freedive-quantize")

    @routes.post("/downloads")
    async def download(body: ModelRequest, request: Request) -> Json:
        key_of(request).require("pull")
        return jobs.begin(Job("download", body.model), partial(pulls.pull, body.model)).facts()

    @routes.post("/quantized")
    async def quantize(body: QuantizeRequest, request: Request) -> Json:
        key_of(request).require("files")
        if body.format not in library.formats:
            raise UserError(f"{body.format!r} is not a format", f"Choose one of {', '.join(library.formats)}")
        source = models.slot(body.model).entry.source or body.model
        job = Job("quantize", body.model, body.format)
        work = partial(library.quantize, source, body.model, body.format, job.progress)
        return jobs.begin(job, lambda progress: quantizing.run(work, progress, models.add)).facts()

    @routes.post("/jobs/{id}/stop")
    async def stop(id: str, request: Request) -> Json:
        job = jobs.find(id)
        key_of(request).require(RIGHTS[job.kind])
        await jobs.stop(job)
        return {"id": id}

    @routes.delete("/jobs/{id}")
    async def cancel(id: str, request: Request) -> Json:
        job = jobs.find(id)
        key_of(request).require(RIGHTS[job.kind])
        await jobs.stop(job)
        if job.kind == "download":
            await run_in_threadpool(library.discard, job.model)
        return {"id": id}

    @routes.post("/discard")
    async def discard(body: ModelRequest, request: Request) -> Json:
        key_of(request).require("pull")
        if jobs.of(body.model):
            raise UserError(f"'{body.model}' is being worked on", "Cancel this first", param="model")
        return {"freed_bytes": await run_in_threadpool(library.discard, body.model)}


def _add_removal(routes: APIRouter, models: Models, library: Library, jobs: Jobs) -> None:
    @routes.post("/remove")
    async def remove(body: ModelRequest, request: Request) -> Json:
        is_served = body.model in models
        key_of(request).require("files")
        if jobs.of(body.model):
            raise UserError(f"'{body.model}' is being worked on", "Cancel this first", param="model")
        name = models.slot(body.model).entry.name if is_served else await _known(library, body.model)
        return {"freed_bytes": await models.remove(name, partial(library.remove, name))}


async def _known(library: Library, name: str) -> str:
    """Returns the name of a model that is listed. Raises NotFound, so that nobody can name files or addresses."""
    if any(model["name"] == name for model in await run_in_threadpool(library.models)):
        return name
    raise NotFound(f"There is no model '{name}' here", "Choose one of the list", param="model")


def _states(models: Models) -> Json:
    return {name: slot.state for name, slot in models.slots.items()}


def _served(slot: Slot) -> Json:
    entry = slot.entry
    return {"name": entry.name, "state": slot.state, "bytes_here": entry.num_bytes}
