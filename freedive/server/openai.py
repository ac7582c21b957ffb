"""OpenAI's routes: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from freedive.engine.request import Piece, TokenLogprobs
from freedive.errors import UserError
from freedive.server.job import Job, find_model
from freedive.server.model import Generation, Model, Tokenizer
from freedive.server.problems import describe, problem
from freedive.server.stream import EventStream, event, interleave, unless_disconnected
from freedive.server.wire import ChatRequest, CompletionRequest, GenerationRequest
from freedive.text.dialects.parser import Answer, Parser, joined
from freedive.text.question import Question

logger = logging.getLogger(__name__)

Json = dict[str, Any]


def router(models: Sequence[Model]) -> APIRouter:
    """The routes for ``models``."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])

    @routes.get("/models", summary="List the loaded models")
    async def list_models() -> Json:
        return {"object": "list", "data": [_model_card(model) for model in models]}

    @routes.get("/models/{name:path}", summary="One loaded model")
    async def retrieve_model(name: str) -> Json:
        return _model_card(find_model(models, name))

    @routes.post("/chat/completions", summary="Answer a conversation", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        job, question = await chat_job(models, body)
        choices = [ChatChoice(index, job.model.tokenizer, question.reader()) for index in range(body.n)]
        return await _respond(request, body, job, choices)

    @routes.post("/completions", summary="Continue a text", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        job = await completion_job(models, body)
        echoes = await run_in_threadpool(_echoes, body, job) if body.echo else [""] * len(job.prompts)
        pairs = itertools.product(echoes, range(body.n))
        choices = [TextChoice(index, job.model.tokenizer, echo) for index, (echo, _) in enumerate(pairs)]
        return await _respond(request, body, job, choices)

    return routes


async def chat_job(models: Sequence[Model], body: ChatRequest) -> tuple[Job, Question]:
    """What is asked, and how answers are read.

    Raises UserError for an unknown model, unusable sampling or messages the template refuses.
    """
    model = find_model(models, body.model)
    sampling = model.sampling(**body.sampling())
    question = await run_in_threadpool(model.question, [message.for_template() for message in body.messages])
    return Job(model, [question.tokens], sampling, body.n, keep=question.keeps), question


async def completion_job(models: Sequence[Model], body: CompletionRequest) -> Job:
    """Raises UserError for an unknown model or unusable sampling."""
    model = find_model(models, body.model)
    sampling = model.sampling(**body.sampling())

    def encoded(prompt: str | list[int]) -> list[int]:
        return model.tokenizer.encode(prompt, add_special=True) if isinstance(prompt, str) else prompt

    prompts = await run_in_threadpool(lambda: [encoded(prompt) for prompt in body.prompt])
    return Job(model, prompts, sampling, body.n, continues=True)


def _echoes(body: CompletionRequest, job: Job) -> list[str]:
    return [p if isinstance(p, str) else job.model.tokenizer.decode(p, skip_special=False) for p in body.prompt]


def _model_card(model: Model) -> Json:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "freedive",
        "max_context": model.max_context,
    }


class Choice(Protocol):
    """Writes one choice of an answer, as a whole or piece by piece."""

    object: str
    chunk_object: str
    id_prefix: str

    def whole(self, piece: Piece) -> Json: ...

    def chunk(self, piece: Piece) -> Json | None:
        """None where nothing is certain yet."""


class ChatChoice:
    """``reader`` tells thoughts, which go by DeepSeek's name ``reasoning_content``, from the text."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, index: int, tokenizer: Tokenizer, reader: Parser) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.reader = reader
        self.started = False

    def whole(self, piece: Piece) -> Json:
        answer = self._read(piece)
        thoughts = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
        message = {"role": "assistant", "content": answer.content, **thoughts, "refusal": None}
        return self._choice(piece, message=message)

    def chunk(self, piece: Piece) -> Json | None:
        answer = self._read(piece)
        delta = {} if self.started else {"role": "assistant", "content": ""}
        delta |= {"reasoning_content": answer.reasoning} if answer.reasoning else {}
        delta |= {"content": answer.content} if answer.content else {}
        if not (delta or piece.logprobs or piece.finish_reason):
            return None
        self.started = True
        return self._choice(piece, delta=delta)

    def _read(self, piece: Piece) -> Answer:
        return joined(self.reader.read(piece.text, ends=bool(piece.finish_reason)))

    def _choice(self, piece: Piece, **said: Json) -> Json:
        content = [self._logprob(entry) for entry in piece.logprobs or ()]
        logprobs = {"content": content, "refusal": None} if content else None
        return {"index": self.index, **said, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _logprob(self, entry: TokenLogprobs) -> Json:
        top = [self._token(token_id, logprob) for token_id, logprob in entry.top]
        return self._token(entry.token_id, entry.logprob) | {"top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> Json:
        text = self.tokenizer.token_text(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(self.tokenizer.token_bytes(token_id))}


class TextChoice:
    object = chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, index: int, tokenizer: Tokenizer, echo: str = "") -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.echo = echo
        self.offset = 0

    def whole(self, piece: Piece) -> Json:
        text, self.echo = self.echo + piece.text, ""
        logprobs = self._logprobs(piece.logprobs) if piece.logprobs else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def chunk(self, piece: Piece) -> Json | None:
        return self.whole(piece) if piece.text or piece.logprobs or piece.finish_reason else None

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


async def _respond(request: Request, body: GenerationRequest, job: Job, choices: Sequence[Choice]) -> Response:
    generations = job.submit()
    kind = choices[0]
    head: Json = {
        "id": kind.id_prefix + uuid.uuid4().hex,
        "object": kind.chunk_object if body.stream else kind.object,
        "created": int(time.time()),
        "model": job.model.name,
    }
    if body.stream:
        return EventStream(_chunks(head, choices, generations, _usage(job, generations), body.include_usage))
    return JSONResponse(
        await unless_disconnected(request, _whole(head, choices, generations, _usage(job, generations)))
    )


Usage = Callable[[int], Json]
"""Number of generated tokens -> OpenAI's usage object."""


def _usage(job: Job, generations: Sequence[Generation]) -> Usage:
    """A prompt that is continued several times counts once."""
    num_prompt = sum(generation.num_prompt_tokens for generation in generations[:: job.num_choices])

    def usage(num_generated: int) -> Json:
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
        }

    return usage


async def _whole(head: Json, choices: Sequence[Choice], generations: Sequence[Generation], usage: Usage) -> Json:
    pieces: list[list[Piece]] = [[] for _ in choices]
    async with aclosing(interleave(generations)) as items:
        async for index, piece in items:
            pieces[index].append(piece)
    answers = [_joined(each) for each in pieces]
    num_generated = sum(len(answer.token_ids) for answer in answers)
    written = [choice.whole(answer) for choice, answer in zip(choices, answers, strict=True)]
    return head | {"choices": written, "usage": usage(num_generated)}


def _joined(pieces: Sequence[Piece]) -> Piece:
    logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
    return Piece(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        finish_reason=pieces[-1].finish_reason,
        logprobs=tuple(logprobs) or None,
    )


async def _chunks(
    head: Json, choices: Sequence[Choice], generations: Sequence[Generation], usage: Usage, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    if include_usage:
        head = head | {"usage": None}
    num_generated = 0
    try:
        async with aclosing(interleave(generations)) as items:
            async for index, piece in items:
                num_generated += len(piece.token_ids)
                if said := choices[index].chunk(piece):
                    yield event(head | {"choices": [said]})
        if include_usage:
            yield event(head | {"choices": [], "usage": usage(num_generated)})
        yield b"data: [DONE]\n\n"
    except UserError as error:
        yield event(describe(error))
    except Exception:
        logger.exception("answer %s failed", head["id"])
        yield event(problem(f"internal error; the server's log has it as {head['id']}", 500))
