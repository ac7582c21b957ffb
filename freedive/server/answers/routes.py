"""Routes of answers to conversations: a private API that may change with the page."""

from __future__ import annotations

from fastapi import Request

from freedive.json_object import Json
from freedive.server.answers.answers import Answers
from freedive.server.answers.fields import AnswerRequest, DecisionRequest
from freedive.server.conversations.routes import PREFIX
from freedive.server.routing import APIRouter
from freedive.server.stream import EventStream


def router(answers: Answers) -> APIRouter:
    """Returns the routes of ``answers``."""
    routes = APIRouter(prefix=PREFIX, include_in_schema=False)

    @routes.post("/{id}/answers")
    async def start(id: str, body: AnswerRequest, request: Request) -> Json:
        if body.continue_ is not None:
            return vars(await answers.resume(request, id, body.continue_))
        return vars(await answers.start(request, id, body.parent or "", body.model))

    @routes.get("/{id}/answers/{message}/events", response_model=None)
    async def events(id: str, message: str, request: Request) -> EventStream:
        return EventStream(await answers.events(request, id, message))

    @routes.get("/{id}/answers/{message}/experts", response_model=None)
    async def experts(id: str, message: str, request: Request) -> EventStream:
        return EventStream(await answers.experts(request, id, message))

    @routes.post("/{id}/answers/{message}/calls/{call}")
    async def decide(id: str, message: str, call: str, body: DecisionRequest, request: Request) -> Json:
        return vars(await answers.decide(request, id, message, call, body.answer))

    @routes.post("/{id}/answers/{message}/stop")
    async def stop(id: str, message: str, request: Request) -> Json:
        await answers.stop(request, id, message)
        return {"id": message}

    @routes.post("/{id}/answers/{message}/answer-now")
    async def answer_now(id: str, message: str, request: Request) -> Json:
        answers.answer_now(request, id, message)
        return {"id": message}

    return routes
