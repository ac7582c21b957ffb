"""The chat page: one HTML page, and the stream of rendered answers behind it."""

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

from freedive.chat.rendering import LiveMarkdown
from freedive.server.answers import Answers
from freedive.server.guard import Guard
from freedive.server.openai.fields import ChatRequest
from freedive.server.problems import Problem
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.server.stream import EventStream, event, survived
from freedive.text.dialects.dialect import Event
from freedive.text.dialects.parser import joined

FRAME_S = 0.04
"""Shortest time between two updates of a growing answer."""
RENDER_SHARE = 0.1
"""The part of the time that rendering may take: long blocks, which are slow to render, are updated less often."""


def router(service: Service, guard: Guard) -> APIRouter:
    """The page at / and its stream."""
    routes = APIRouter(include_in_schema=False)
    words: dict[str, dict[str, str]] = json.loads((files(__package__) / "words.json").read_text("utf-8"))
    environment = Environment(loader=PackageLoader("freedive.chat", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("page.html")

    @routes.get("/")
    async def page(request: Request) -> HTMLResponse:
        language = choose_language(request.cookies.get("lang", ""), request.headers.get("accept-language", ""), words)
        names = [] if guard.locked else list(service.models.slots)
        html = template.render(
            language=language, words=words[language], all_words=words, names=names, locked=guard.locked
        )
        return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Vary": "Accept-Language, Cookie"})

    @routes.post("/chat/stream", response_model=None)
    async def stream(body: ChatRequest, request: Request) -> EventStream:
        answers = await service.answers(body.ask(), request)
        return EventStream(survived(_updates(answers), _last_word, "for the page"))

    return routes


def static_files() -> StaticFiles:
    """Style sheets and scripts, by name under /static."""
    return StaticFiles(packages=[("freedive.chat", "static")])


def choose_language(cookie: str, accepted: str, known: Sequence[str] | dict[str, Any]) -> str:
    """The reader's own choice, else the first language of their browser that we know, else English."""
    wanted = [cookie, *(part.partition(";")[0].strip().partition("-")[0].lower() for part in accepted.split(","))]
    return next((language for language in wanted if language in known), "en")


async def _updates(answers: Answers) -> AsyncGenerator[bytes, None]:
    """Events of one answer: new ``thoughts`` and ``text``, HTML that has ``settled``, HTML of the still open ``tail``,
    and a meter.
    """
    live, unsent, due = LiveMarkdown(), list[Event](), 0.0
    async with aclosing(answers.said()) as items:
        async for said in items:
            unsent += said.events
            before = time.perf_counter()
            if before < due and not said.finish:
                continue
            answer = joined(unsent)
            settled, tail = await run_in_threadpool(live.push, answer.content)
            yield event(
                {
                    "thoughts": answer.reasoning,
                    "text": answer.content,
                    "settled": settled,
                    "tail": tail,
                    "finished": "repetition" if said.stop_reason == "repetition" else said.finish,
                    "meter": _meter(answers),
                }
            )
            after = time.perf_counter()
            unsent, due = [], after + max(FRAME_S, (after - before) / RENDER_SHARE)


def _last_word(problem: Problem) -> bytes:
    return event({"error": problem.message})


def _meter(answers: Answers) -> dict[str, float]:
    return {
        "first_token_s": answers.timings.first_token_s,
        "tokens_per_s": answers.timings.tokens_per_s,
        "num_tokens": answers.usage.total,
        "max_context": answers.model.max_context,
    }
