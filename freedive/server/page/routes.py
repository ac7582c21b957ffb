"""Routes of the chat page: the HTML page and the stream of rendered answers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined

from freedive.server.api_errors import ApiError
from freedive.server.auth import Auth
from freedive.server.completion_stream import Completions
from freedive.server.openai.fields import ChatRequest
from freedive.server.page.rendering import FRAME_S, RENDER_SHARE, LiveMarkdown
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.server.stream import EventStream, event, with_error_event
from freedive.text.dialects.dialect import Event
from freedive.text.dialects.parser import joined


def router(service: Service, auth: Auth) -> APIRouter:
    """Returns the routes of the chat page and its stream."""
    routes = APIRouter(include_in_schema=False)
    translations: dict[str, dict[str, str]] = json.loads((files(__package__) / "translations.json").read_text("utf-8"))
    environment = Environment(
        loader=PackageLoader("freedive.server.page", "."), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("page.html")

    @routes.get("/")
    async def page(request: Request) -> HTMLResponse:
        language = choose_language(
            request.cookies.get("lang", ""), request.headers.get("accept-language", ""), translations
        )
        names = [] if auth.locked else list(service.models.slots)
        html = template.render(
            language=language,
            translations=translations[language],
            all_translations=translations,
            names=names,
            locked=auth.locked,
        )
        return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Vary": "Accept-Language, Cookie"})

    @routes.post("/chat/stream", response_model=None)
    async def stream(body: ChatRequest, request: Request) -> EventStream:
        completions = await service.generate(body.generation_request, request)
        body.report_unheeded(completions.model)
        return EventStream(with_error_event(_updates(completions), _error_event, "for the page"))

    return routes


def static_files() -> StaticFiles:
    """Returns the application that serves style sheets and scripts under /static."""
    return StaticFiles(packages=[("freedive.server.page", "static")])


def choose_language(cookie: str, accepted: str, languages: Sequence[str] | dict[str, Any]) -> str:
    """Returns the cookie's language, else the first of Accept-Language that is in ``languages``, else English."""
    wanted = [cookie, *(part.partition(";")[0].strip().partition("-")[0].lower() for part in accepted.split(","))]
    return next((language for language in wanted if language in languages), "en")


async def _updates(completions: Completions) -> AsyncGenerator[bytes, None]:
    """Yields the events of one answer: new thoughts and text, HTML of complete blocks and of the last one, a meter."""
    live, unsent, due = LiveMarkdown(), list[Event](), 0.0
    async with aclosing(completions.deltas()) as items:
        async for delta in items:
            unsent += delta.events
            before = time.perf_counter()
            if before < due and not delta.finish:
                continue
            answer = joined(unsent)
            settled, tail = await run_in_threadpool(live.push, answer.content)
            yield event(
                {
                    "thoughts": answer.reasoning,
                    "text": answer.content,
                    "settled": settled,
                    "tail": tail,
                    "finished": "repetition" if delta.stop_reason == "repetition" else delta.finish,
                    "meter": _meter(completions),
                }
            )
            after = time.perf_counter()
            unsent, due = [], after + max(FRAME_S, (after - before) / RENDER_SHARE)


def _error_event(error: ApiError) -> bytes:
    return event({"error": error.message})


def _meter(completions: Completions) -> dict[str, float]:
    return {
        "first_token_s": completions.timings.first_token_s,
        "tokens_per_s": completions.timings.tokens_per_s,
        "num_tokens": completions.usage.total_tokens,
        "max_context": completions.model.max_context,
    }
