"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fastapi import Request
from fastapi.responses import Response

from freedive.json_object import Json
from freedive.server.completion_stream import Delta
from freedive.server.logprobs import CompletionLogprobs
from freedive.server.model import Tokenizer
from freedive.server.openai.fields import CompletionRequest
from freedive.server.openai.respond import ending, respond
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.text.dialects.parser import joined


def router(service: Service) -> APIRouter:
    """Returns the route of OpenAI's completions API."""
    routes = APIRouter()

    @routes.post("/completions", summary="Continue a text, or fill the gap before a suffix", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        completions = await service.generate(body.generation_request, request)
        tokenizer = completions.model.tokenizer
        prompts = [prompt for prompt in body.prompt for _ in range(body.n)]
        choices = [TextChoice(index, tokenizer, prompt if body.echo else None) for index, prompt in enumerate(prompts)]
        return await respond(request, body, completions, choices)

    return routes


class TextChoice:
    """Writes one choice of a text completion; it starts with ``prompt`` (text or token ids) if that is given (echo)."""

    object = chunk_object = "text_completion"
    id_prefix = "cmpl-"
    nothing: ClassVar[Json] = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}

    def __init__(self, index: int, tokenizer: Tokenizer, prompt: str | Sequence[int] | None = None) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.logprobs = CompletionLogprobs(tokenizer)

    def whole(self, delta: Delta) -> Json:
        prompt, self.prompt = self.prompt or "", None
        echo = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, skip_special=False)
        if delta.prompt_logprobs:  # special tokens that the tokenizer adds before the text are not shown
            tokens = [entry.token_id for entry in delta.prompt_logprobs]
            self.logprobs.skip(len(self.tokenizer.decode(tokens, skip_special=False)) - len(echo))
        entries = [*delta.prompt_logprobs, *delta.logprobs]
        logprobs = self.logprobs.part(entries) if entries else None
        text = echo + joined(delta.events).content
        return {"index": self.index, "text": text, "logprobs": logprobs} | ending(delta)

    def chunk(self, delta: Delta) -> Json | None:
        return self.whole(delta) if delta.events or delta.logprobs or delta.finish else None
