"""POST /v1/chat/completions."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from fastapi import Request
from fastapi.responses import Response

from freedive.server.answers import Said
from freedive.server.logprobs import logprob_object
from freedive.server.model import Tokenizer
from freedive.server.openai.fields import ChatRequest
from freedive.server.openai.respond import ending, respond
from freedive.server.problems import prompt_named
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.text.dialects.dialect import Call
from freedive.text.dialects.parser import joined

Json = dict[str, Any]


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/chat/completions", summary="Answer a conversation", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        with prompt_named("messages"):
            answers = await service.answers(body.ask(), request)
        choices = [ChatChoice(index, answers.model.tokenizer) for index in range(len(answers))]
        return await respond(request, body, answers, choices)

    return routes


class ChatChoice:
    """Thoughts go by DeepSeek's name, ``reasoning_content``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"
    nothing: ClassVar[Json] = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}

    def __init__(self, index: int, tokenizer: Tokenizer) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.started = False
        self.num_calls = 0

    def whole(self, said: Said) -> Json:
        answer = joined(said.events)
        message: Json = {"role": "assistant", "content": answer.content, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message |= {"content": answer.content or None, "tool_calls": [tool_call(call) for call in answer.calls]}
        return self._choice(said, message=message)

    def chunk(self, said: Said) -> Json | None:
        answer = joined(said.events)
        delta: Json = {} if self.started else {"role": "assistant", "content": ""}
        delta |= {"reasoning_content": answer.reasoning} if answer.reasoning else {}
        delta |= {"content": answer.content} if answer.content else {}
        delta |= {"tool_calls": [self._numbered(call) for call in answer.calls]} if answer.calls else {}
        if not (delta or said.logprobs or said.finish):
            return None
        self.started = True
        return self._choice(said, delta=delta)

    def _numbered(self, call: Call) -> Json:
        self.num_calls += 1
        return {"index": self.num_calls - 1} | tool_call(call)

    def _choice(self, said: Said, **text: Json) -> Json:
        content = [logprob_object(entry, self.tokenizer) for entry in said.logprobs]
        logprobs = {"content": content, "refusal": None} if content else None
        return {"index": self.index, **text, "logprobs": logprobs} | ending(said)


def tool_call(call: Call) -> Json:
    """A call as OpenAI has it, with an id of its own where the model gave none."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id or f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
