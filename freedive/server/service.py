"""Starts the completions of a request, for all APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from freedive.engine.request import GenerationRequest
from freedive.engine.sampling import Sampling
from freedive.engine.submission import Job
from freedive.errors import ContextLengthExceeded, UserError
from freedive.server.completion_stream import Completions
from freedive.server.keys import Key
from freedive.server.model import Model
from freedive.server.models import Models
from freedive.server.request_record import RequestRecord
from freedive.server.routing import off_loop
from freedive.text.prompt import Prompt

T = TypeVar("T")

Describe = Callable[[], GenerationRequest]
"""A function that converts a request body to a generation request."""

LONG_BYTES = 1 << 18
"""Bodies above this size in bytes can take seconds to tokenize."""

MAX_ANSWERS = 4096
"""The most prompts times choices of one request: each answer takes memory until the last one has finished."""

MAX_LOGPROBS = 1 << 20
"""The most log-probabilities of one request with several answers: each takes about 500 bytes until it is written."""


@dataclass(frozen=True)
class Service:
    """Starts completions on the server's models.

    Each tenant has its own threads per model for templates, tokenizers and grammars, with one more for long requests
    and structured output: a slow request delays no other model, no other tenant and no short request. Completions have
    their request only if ``keeps_requests``.
    """

    models: Models
    keeps_requests: bool = False
    _threads: dict[tuple[str, str, bool], CapacityLimiter] = field(default_factory=dict)

    async def generate(self, describe: Describe, request: Request) -> Completions:
        """Starts the completions of the generation request that ``describe`` returns, for the tenant of ``request``.

        Raises UserError for a request that cannot be honoured, and Overloaded if the queue is full.
        """
        record: RequestRecord = request.state.record
        generation_request = self._scoped(record.key, await _described(describe, request))
        async with self.models.use(generation_request.model, generation_request.keep_alive_s) as model:
            sampling = model.sampling(**generation_request.sampling)
            work = partial(_submit, model, sampling, generation_request)
            completions = await self._in_thread(work, model, request, is_guided=generation_request.is_guided)
        if self.keeps_requests:
            completions.request = replace(generation_request, sampling=asdict(sampling))
        record.completions = completions
        return completions

    def _scoped(self, key: Key, generation_request: GenerationRequest) -> GenerationRequest:
        """Returns the request with the key's tenant, and without ``keep_alive_s`` unless the key may manage models."""
        return replace(
            generation_request,
            scope=replace(generation_request.scope, tenant=key.id),
            keep_alive_s=generation_request.keep_alive_s if "manage" in key.may else None,
        )

    async def prompts(self, describe: Describe, request: Request) -> tuple[Model, Sequence[Prompt]]:
        """Returns the model and the prompts of a request, without running it. Raises UserError as in generate.

        So sampling fields outside their limits are refused, although nothing is sampled.
        """
        generation_request = await _described(describe, request)
        work = partial(_checked_prompts, generation_request=generation_request)
        return await self.run(generation_request.model, work, request, is_guided=generation_request.is_guided)

    async def count(self, request: Request, name: str, text: str) -> int | None:
        """Returns the tokens of ``text`` for the model ``name`` ("": the first one).

        Returns None if it is not loaded, as one that does not exist.
        """
        name = name or next(iter(self.models.slots))
        if name not in self.models or not self.models.slot(name).model:
            return None
        return (await self.run(name, lambda model: len(model.tokenizer.encode(text, parse_special=False)), request))[1]

    async def run(
        self, name: str, work: Callable[[Model], T], request: Request, *, is_guided: bool = False
    ) -> tuple[Model, T]:
        """Returns the model of this name, and the result of ``work`` on it, computed in a thread."""
        async with self.models.use(name) as model:
            return model, await self._in_thread(partial(work, model), model, request, is_guided=is_guided)

    async def _in_thread(self, work: Callable[[], T], model: Model, request: Request, *, is_guided: bool) -> T:
        is_long = is_guided or request.state.record.num_body_bytes > LONG_BYTES
        group = (model.name, request.state.record.key.id, is_long)
        threads = self._threads.setdefault(group, CapacityLimiter(1 if is_long else 4))
        async with threads:
            if await request.is_disconnected():  # while it waited for a thread
                raise ClientDisconnect
            return await run_sync(work, limiter=CapacityLimiter(1))


async def _described(describe: Describe, request: Request) -> GenerationRequest:
    """Returns the generation request, built in a thread if the body is long."""
    return await off_loop(request.state.record.num_body_bytes, describe)


def _prompts(model: Model, generation_request: GenerationRequest) -> list[Prompt]:
    """Returns the prompts of all inputs. Blocks: call it in a thread."""
    return [model.prepare(each) for each in generation_request.inputs]


def _checked_prompts(model: Model, generation_request: GenerationRequest) -> list[Prompt]:
    """Returns the prompts of a request whose sampling fields have valid values. Blocks: call it in a thread."""
    model.sampling(**generation_request.sampling)
    return _prompts(model, generation_request)


def _submit(model: Model, sampling: Sampling, generation_request: GenerationRequest) -> Completions:
    """Submits one generation for each choice of each prompt, all or none. Blocks: call it in a thread."""
    prompts, n = _prompts(model, generation_request), generation_request.n
    if len(prompts) * n > MAX_ANSWERS:
        what = f"{len(prompts)} prompts with {n} choices are more than {MAX_ANSWERS} answers"
        raise UserError(what, "Send several requests", param="n")
    jobs = generation_request.jobs(prompts, sampling, model.max_context)
    _check_logprobs(jobs, model.max_context)
    try:
        generations = model.engine.submit_all(jobs)
    except UserError as error:
        if any(len(job.prompt.tokens) >= model.max_context for job in jobs):
            raise ContextLengthExceeded(error.what, error.remedy, param=error.param) from error
        raise
    return Completions(model, generations, n, thinks=prompts[0].parser().is_thinking)


def _check_logprobs(jobs: Sequence[Job], max_context: int) -> None:
    """Raises UserError if several answers together would have more than :data:`MAX_LOGPROBS` log-probabilities."""
    number = 0
    for job in jobs:
        room, sampling = max_context - len(job.prompt.tokens), job.sampling
        asked = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        for length, top in ((len(job.prompt.tokens), sampling.prompt_logprobs), (asked, sampling.logprobs)):
            number += 0 if top is None else length * (1 + top)
    if len(jobs) > 1 and number > MAX_LOGPROBS:
        what = f"{len(jobs)} answers may have {number} log-probabilities, more than {MAX_LOGPROBS}"
        raise UserError(what, "Send several requests, or set a smaller max_tokens", param="logprobs")
