"""POST /api/chat and /api/generate."""

from __future__ import annotations

import uuid

from fastapi import Request
from fastapi.responses import Response

from freedive.json_object import Json
from freedive.server.ollama.fields import ChatRequest, GenerateRequest
from freedive.server.ollama.respond import respond
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.text.arguments import argument_values
from freedive.text.dialects.dialect import Call
from freedive.text.dialects.parser import Answer


def router(service: Service) -> APIRouter:
    """Returns the routes of Ollama's chat and generate APIs."""
    routes = APIRouter()

    @routes.post("/chat", summary="Answer a conversation", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await respond(service, request, body, _message)

    @routes.post("/generate", summary="Answer a prompt, or fill the gap before a suffix", response_model=None)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        return await respond(service, request, body, _response)

    return routes


def _message(answer: Answer) -> Json:
    calls = {"tool_calls": [_call(call) for call in answer.calls]} if answer.calls else {}
    return {"message": {"role": "assistant", "content": answer.content} | _thinking(answer) | calls}


def _response(answer: Answer) -> Json:
    return {"response": answer.content} | _thinking(answer)


def _thinking(answer: Answer) -> Json:
    return {"thinking": answer.reasoning} if answer.reasoning else {}


def _call(call: Call) -> Json:
    function = {"name": call.name, "arguments": argument_values(call.arguments)}
    return {"id": call.id or f"call_{uuid.uuid4().hex}", "function": function}
