"""POST /v1/chat/completions."""

from __future__ import annotations

import uuid
from typing import ClassVar

from fastapi import Request
from fastapi.responses import Response

from freedive.json_object import Json
from freedive.server.api_errors import prompt_named
from freedive.server.completion_stream import Delta
from freedive.server.logprobs import logprob_object
from freedive.server.model import Tokenizer
from freedive.server.openai.fields import ChatRequest
from freedive.server.openai.respond import ending, respond
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.text.dialects.dialect import Call
from freedive.text.dialects.parser import joined


def router(service: Service) -> APIRouter:
    """Returns the route of OpenAI's chat API."""
    routes = APIRouter()

    @routes.post("/chat/completions", summary="Answer a conversation", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        with prompt_named("messages"):
            completions = await service.generate(body.generation_request, request)
        body.report_unheeded(completions.model)
        choices = [ChatChoice(index, completions.model.tokenizer) for index in range(len(completions))]
        return await respond(request, body, completions, choices)

    return routes


class ChatChoice:
    """Writes one choice of a chat completion; thoughts are in DeepSeek's field ``reasoning_content``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"
    nothing: ClassVar[Json] = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}

    def __init__(self, index: int, tokenizer: Tokenizer) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.started = False
        self.num_calls = 0

    def whole(self, delta: Delta) -> Json:
        answer = joined(delta.events)
        message: Json = {"role": "assistant", "content": answer.content, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message |= {"content": answer.content or None, "tool_calls": [tool_call(call) for call in answer.calls]}
        return self._choice(delta, message=message)

    def chunk(self, delta: Delta) -> Json | None:
        answer = joined(delta.events)
        fields: Json = {} if self.started else {"role": "assistant", "content": ""}
        fields |= {"reasoning_content": answer.reasoning} if answer.reasoning else {}
        fields |= {"content": answer.content} if answer.content else {}
        fields |= {"tool_calls": [self._numbered(call) for call in answer.calls]} if answer.calls else {}
        if not (fields or delta.logprobs or delta.finish):
            return None
        self.started = True
        return self._choice(delta, delta=fields)

    def _numbered(self, call: Call) -> Json:
        self.num_calls += 1
        return {"index": self.num_calls - 1} | tool_call(call)

    def _choice(self, delta: Delta, /, **text: Json) -> Json:
        content = [logprob_object(entry, self.tokenizer) for entry in delta.logprobs]
        logprobs = {"content": content, "refusal": None} if content else None
        return {"index": self.index, **text, "logprobs": logprobs} | ending(delta)


def tool_call(call: Call) -> Json:
    """Returns a call in OpenAI's format; a call without an id gets a new one."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id or f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
