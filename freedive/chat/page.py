"""The chat page: one HTML page, and the stream of rendered answers behind it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined

from freedive.chat.rendering import LiveMarkdown
from freedive.errors import UserError
from freedive.server.job import Job
from freedive.server.model import Generation, Model
from freedive.server.openai import chat_job
from freedive.server.stream import EventStream, event, interleave
from freedive.server.wire import ChatRequest
from freedive.text.dialects.dialect import Event
from freedive.text.dialects.parser import Parser, joined

logger = logging.getLogger(__name__)

FRAME_S = 0.04
"""Shortest time between two updates of a growing answer."""
RENDER_SHARE = 0.1
"""The part of the time that rendering may take: long blocks, which are slow to render, are updated less often."""


def router(models: Sequence[Model]) -> APIRouter:
    """The page at / and its stream."""
    routes = APIRouter(include_in_schema=False)
    words: dict[str, dict[str, str]] = json.loads((files(__package__) / "words.json").read_text("utf-8"))
    environment = Environment(loader=PackageLoader("freedive.chat", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("page.html")

    @routes.get("/")
    async def page(request: Request) -> HTMLResponse:
        language = choose_language(request.cookies.get("lang", ""), request.headers.get("accept-language", ""), words)
        html = template.render(language=language, words=words[language], all_words=words, models=models)
        return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Vary": "Accept-Language, Cookie"})

    @routes.post("/chat/stream", response_model=None)
    async def stream(body: ChatRequest) -> EventStream:
        job, question = await chat_job(models, body)
        return EventStream(_updates(job, job.submit()[0], question.reader()))

    return routes


def static_files() -> StaticFiles:
    """Style sheets and scripts, by name under /static."""
    return StaticFiles(packages=[("freedive.chat", "static")])


def choose_language(cookie: str, accepted: str, known: Sequence[str] | dict[str, Any]) -> str:
    """The reader's own choice, else the first language of their browser that we know, else English."""
    wanted = [cookie, *(part.partition(";")[0].strip().partition("-")[0].lower() for part in accepted.split(","))]
    return next((language for language in wanted if language in known), "en")


async def _updates(job: Job, generation: Generation, reader: Parser) -> AsyncGenerator[bytes, None]:
    """Events of one answer: new ``thoughts`` and ``text``, HTML that has ``settled``, HTML of the still open ``tail``,
    and a meter.
    """
    live, said, due = LiveMarkdown(), list[Event](), 0.0
    try:
        async with aclosing(interleave([generation])) as items:
            async for _, piece in items:
                said += reader.read(piece.text, ends=bool(piece.finish_reason))
                before = time.perf_counter()
                if before < due and not piece.finish_reason:
                    continue
                answer = joined(said)
                settled, tail = await run_in_threadpool(live.push, answer.content)
                yield event(
                    {
                        "thoughts": answer.reasoning,
                        "text": answer.content,
                        "settled": settled,
                        "tail": tail,
                        "finished": piece.finish_reason,
                        "meter": _meter(job, generation),
                    }
                )
                after = time.perf_counter()
                said, due = [], after + max(FRAME_S, (after - before) / RENDER_SHARE)
    except UserError as error:
        yield event({"error": str(error)})
    except Exception:
        logger.exception("an answer for the page failed")
        yield event({"error": "internal error; see the server's log"})


def _meter(job: Job, generation: Generation) -> dict[str, float]:
    timings = generation.timings
    return {
        "first_token_s": timings.first_token_s,
        "tokens_per_s": timings.tokens_per_s,
        "num_tokens": generation.num_prompt_tokens + timings.num_generated,
        "max_context": job.model.max_context,
    }
