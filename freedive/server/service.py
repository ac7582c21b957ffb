"""Starts the completions of a request, whichever API it came through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from freedive.engine.generation import Sampling
from freedive.engine.submission import Job
from freedive.errors import ContextLengthExceeded, UserError
from freedive.server.completion_stream import Completions
from freedive.server.generation_request import GenerationRequest
from freedive.server.keys import Key
from freedive.server.model import Model
from freedive.server.models import Models
from freedive.server.request_record import RequestRecord
from freedive.text.prompt import Prompt

T = TypeVar("T")

LONG_BYTES = 1 << 18
"""Bodies beyond this take long to make prompts of, perhaps seconds."""

MAX_ANSWERS = 4096
"""Prompts times choices of one request: each takes some memory until the last is there."""

MAX_LOGPROBS = 1 << 20
"""Log-probabilities of one request with several answers: each takes about 500 bytes until it is written."""


@dataclass(frozen=True)
class Service:
    """Starts completions on the server's models.

    Templates, tokenizers and grammars of each model have threads of their own for each tenant, those of long requests
    and of forms apart: a slow one delays neither other models, nor other tenants, nor short requests.
    """

    models: Models
    _threads: dict[tuple[str, str, bool], CapacityLimiter] = field(default_factory=dict)

    async def generate(self, generation_request: GenerationRequest, request: Request) -> Completions:
        """Starts the completions of ``generation_request`` for the tenant that sent ``request``.

        Raises UserError for what cannot be asked, Overloaded when too much is asked at once.
        """
        record: RequestRecord = request.state.record
        generation_request = self._in_the_name_of(record.key, generation_request)
        async with self.models.use(generation_request.model, generation_request.keep_alive_s) as model:
            sampling = model.sampling(**generation_request.sampling)
            record.completions = await self._in_thread(
                partial(_submit, model, sampling, generation_request), model, generation_request, request
            )
        return record.completions

    def _in_the_name_of(self, key: Key, generation_request: GenerationRequest) -> GenerationRequest:
        """``generation_request`` as far as this key may: how long models stay is for those who may manage them."""
        may_keep = "manage" in key.may
        return replace(
            generation_request, tenant=key.id, keep_alive_s=generation_request.keep_alive_s if may_keep else None
        )

    async def prompts(self, generation_request: GenerationRequest, request: Request) -> tuple[Model, Sequence[Prompt]]:
        """The model and the prompts of a request, without running it. Raises UserError for what cannot be asked."""
        async with self.models.use(generation_request.model, generation_request.keep_alive_s) as model:
            return model, await self._in_thread(
                partial(generation_request.prompts, model), model, generation_request, request
            )

    async def _in_thread(
        self, work: Callable[[], T], model: Model, generation_request: GenerationRequest, request: Request
    ) -> T:
        is_long = generation_request.is_guided or getattr(request.state, "num_body_bytes", 0) > LONG_BYTES
        party = (model.name, request.state.record.key.id, is_long)
        threads = self._threads.setdefault(party, CapacityLimiter(1 if is_long else 4))
        async with threads:
            if await request.is_disconnected():  # while it waited for its turn
                raise ClientDisconnect
            return await run_sync(work, limiter=CapacityLimiter(1))


def _submit(model: Model, sampling: Sampling, generation_request: GenerationRequest) -> Completions:
    """One generation for each choice, prompt by prompt; all or none. Takes long for many: not for the event loop."""
    prompts = generation_request.prompts(model)
    if len(prompts) * generation_request.num_choices > MAX_ANSWERS:
        count = generation_request.num_choices
        what = f"{len(prompts)} prompts with {count} choices are more than {MAX_ANSWERS} answers"
        raise UserError(what, "Ask for them in several requests", param="n")
    jobs = []
    for prompt in prompts:
        bounded = _bounded(sampling, prompt, generation_request, model)
        jobs += [
            _job(prompt, _seeded(bounded, choice), generation_request)
            for choice in range(generation_request.num_choices)
        ]
    _check_logprobs(jobs, model.max_context)
    try:
        generations = model.engine.submit_all(jobs)
    except UserError as error:
        if any(len(job.prompt) >= model.max_context for job in jobs):
            raise ContextLengthExceeded(error.what, error.remedy, param=error.param) from error
        raise
    return Completions(model, generations, generation_request.num_choices, thinks=prompts[0].parser().is_thinking)


def _check_logprobs(jobs: Sequence[Job], max_context: int) -> None:
    """Raises UserError where several answers together would have too many log-probabilities to be held."""
    number = 0
    for job in jobs:
        room, sampling = max_context - len(job.prompt), job.sampling
        asked = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        for length, top in ((len(job.prompt), sampling.prompt_logprobs), (asked, sampling.logprobs)):
            number += 0 if top is None else length * (1 + top)
    if len(jobs) > 1 and number > MAX_LOGPROBS:
        what = f"{len(jobs)} answers with up to {number} log-probabilities are more than {MAX_LOGPROBS} of them"
        raise UserError(what, "Ask in several requests, or for shorter answers", param="logprobs")


def _job(prompt: Prompt, sampling: Sampling, generation_request: GenerationRequest) -> Job:
    return Job(
        prompt.tokens,
        sampling,
        continues=prompt.continues,
        is_visible=prompt.is_visible,
        make_parser=prompt.parser,
        make_constraint=partial(prompt.constraint, sampling.max_tokens),
        pooling=generation_request.pooling,
        cache_salt=generation_request.cache_salt,
        user=generation_request.user,
        tenant=generation_request.tenant,
    )


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Choices of a seeded request differ from each other, and from run to run they do not."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)


def _bounded(sampling: Sampling, prompt: Prompt, generation_request: GenerationRequest, model: Model) -> Sampling:
    """``sampling`` with the limits that ``generation_request`` puts on prompt and answer together."""
    if generation_request.max_context is None:
        return sampling
    max_context = min(generation_request.max_context, model.max_context)
    room = max_context - len(prompt.tokens)
    if room < 1:
        what = f"The prompt has {len(prompt.tokens)} tokens, but max_context is {max_context}, answer included"
        raise ContextLengthExceeded(what, "Shorten the prompt, or raise max_context", param="max_context")
    return replace(sampling, max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room))
