"""POST /v1/completions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from freedive.engine.request import TokenLogprobs
from freedive.server.answers import Said
from freedive.server.model import Tokenizer
from freedive.server.openai.fields import CompletionRequest
from freedive.server.openai.respond import respond
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.text.dialects.parser import joined

Json = dict[str, Any]


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/completions", summary="Continue a text, or fill the gap before a suffix", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        answers = await service.answers(body.ask(), request)
        tokenizer = answers.model.tokenizer
        echoes = await run_in_threadpool(_echoes, body, tokenizer) if body.echo else [""] * len(body.prompt)
        pairs = itertools.product(echoes, range(body.n))
        choices = [TextChoice(index, tokenizer, echo) for index, (echo, _) in enumerate(pairs)]
        return await respond(request, body, answers, choices)

    return routes


def _echoes(body: CompletionRequest, tokenizer: Tokenizer) -> list[str]:
    return [p if isinstance(p, str) else tokenizer.decode(p, skip_special=False) for p in body.prompt]


class TextChoice:
    """Begins with ``echo``."""

    object = chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, index: int, tokenizer: Tokenizer, echo: str = "") -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.echo = echo
        self.offset = 0

    def whole(self, said: Said) -> Json:
        text, self.echo = self.echo + joined(said.events).content, ""
        logprobs = self._logprobs(said.logprobs) if said.logprobs else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": said.finish}

    def chunk(self, said: Said) -> Json | None:
        return self.whole(said) if said.events or said.logprobs or said.finish else None

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> Json:
        name = self.tokenizer.token_text
        tokens = [name(entry.token_id) for entry in entries]
        ends = list(itertools.accumulate(map(len, tokens), initial=self.offset))
        self.offset = ends.pop()
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{name(token_id): logprob for token_id, logprob in entry.top} for entry in entries],
            "text_offset": ends,
        }
