"""What every API's routes go to: a request, whatever format it came in, becomes answers under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from freedive.engine.pooling import Pooling
from freedive.engine.request import Sampling
from freedive.engine.submission import Job
from freedive.errors import ContextLengthExceeded, UserError
from freedive.server.answers import Answers
from freedive.server.keys import Key
from freedive.server.model import Model
from freedive.server.models import Models
from freedive.server.visit import Visit
from freedive.text.question import Question

T = TypeVar("T")

LONG_BYTES = 1 << 18
"""Bodies beyond this take long to make questions of, perhaps seconds."""

MAX_ANSWERS = 4096
"""Prompts times choices of one request: each takes some memory until the last is there."""

MAX_LOGPROBS = 1 << 20
"""Log-probabilities of one request with several answers: each takes about 500 bytes until it is written."""


@dataclass(frozen=True)
class Ask:
    """What is asked of a model: ``questions``, made in a thread of their own, each answered ``num_choices`` times.

    ``sampling`` are the fields that the client sets. ``user`` and ``salt`` are the client's words: whose turn it takes,
    and what shares a cache; both stand below the caller's ``tenant``, which :class:`Service` fills in. With ``pooling``
    embeddings are wanted, not answers. ``max_context`` bounds prompt and answer together, in tokens, where that is less
    than the model's own. ``is_guided`` tells that the answer may have a form, which can take seconds to prepare.
    """

    model: str
    questions: Callable[[Model], Sequence[Question]]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    num_choices: int = 1
    user: str = ""
    salt: str = ""
    tenant: str = ""
    pooling: Pooling | None = None
    keep_alive_s: float | None = None
    max_context: int | None = None
    is_guided: bool = False


def to_embed(model: str, texts: Sequence[str | list[int]], pooling: Pooling = "mean", **others: Any) -> Ask:
    """Embeddings of ``texts``, each as it is or as its tokens."""

    def questions(model: Model) -> Sequence[Question]:
        encode = partial(model.tokenizer.encode, add_special=True, max_tokens=model.max_context)
        return [Question(encode(text) if isinstance(text, str) else text) for text in texts]

    return Ask(model, questions, {"max_tokens": 1}, pooling=pooling, **others)


@dataclass(frozen=True)
class Service:
    """The models, and answers from them.

    Templates, tokenizers and grammars of each model have threads of their own for each tenant, those of long requests
    and of forms apart: a slow one delays neither other models, nor other tenants, nor short requests.
    """

    models: Models
    _threads: dict[tuple[str, str, bool], CapacityLimiter] = field(default_factory=dict)

    async def answers(self, ask: Ask, request: Request) -> Answers:
        """Begin to answer, in the name of whoever makes the ``request``.

        Raises UserError for what cannot be asked, Overloaded when too much is asked at once.
        """
        visit: Visit = request.state.visit
        ask = self._in_the_name_of(visit.key, ask)
        async with self.models.use(ask.model, ask.keep_alive_s) as model:
            sampling = model.sampling(**ask.sampling)
            visit.answers = await self._in_thread(partial(_submit, model, sampling, ask), model, ask, request)
        return visit.answers

    def _in_the_name_of(self, key: Key, ask: Ask) -> Ask:
        """``ask`` as far as this key may: how long models stay is for those who may manage them."""
        may_keep = "manage" in key.may
        return replace(ask, tenant=key.id, keep_alive_s=ask.keep_alive_s if may_keep else None)

    async def questions(self, ask: Ask, request: Request) -> tuple[Model, Sequence[Question]]:
        """What would be asked, and of whom. Raises UserError for what cannot be asked."""
        async with self.models.use(ask.model, ask.keep_alive_s) as model:
            return model, await self._in_thread(partial(ask.questions, model), model, ask, request)

    async def _in_thread(self, work: Callable[[], T], model: Model, ask: Ask, request: Request) -> T:
        is_long = ask.is_guided or getattr(request.state, "num_body_bytes", 0) > LONG_BYTES
        party = (model.name, request.state.visit.key.id, is_long)
        threads = self._threads.setdefault(party, CapacityLimiter(1 if is_long else 4))
        async with threads:
            if await request.is_disconnected():  # while it waited for its turn
                raise ClientDisconnect
            return await run_sync(work, limiter=CapacityLimiter(1))


def _submit(model: Model, sampling: Sampling, ask: Ask) -> Answers:
    """One generation for each choice, prompt by prompt; all or none. Takes long for many: not for the event loop."""
    questions = ask.questions(model)
    if len(questions) * ask.num_choices > MAX_ANSWERS:
        what = f"{len(questions)} prompts with {ask.num_choices} choices are more than {MAX_ANSWERS} answers"
        raise UserError(what, "Ask for them in several requests", param="n")
    jobs = []
    for question in questions:
        bounded = _bounded(sampling, question, ask, model)
        jobs += [_job(question, _seeded(bounded, choice), ask) for choice in range(ask.num_choices)]
    _check_logprobs(jobs, model.max_context)
    try:
        generations = model.engine.submit_all(jobs)
    except UserError as error:
        if any(len(job.prompt) >= model.max_context for job in jobs):
            raise ContextLengthExceeded(error.what, error.remedy, param=error.param) from error
        raise
    return Answers(model, generations, ask.num_choices, thinks=questions[0].reader().is_thinking)


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


def _job(question: Question, sampling: Sampling, ask: Ask) -> Job:
    return Job(
        question.tokens,
        sampling,
        continues=question.continues,
        keep=question.keeps,
        reader=question.reader,
        guide=partial(question.guide, sampling.max_tokens),
        pooling=ask.pooling,
        salt=ask.salt,
        user=ask.user,
        tenant=ask.tenant,
    )


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Choices of a seeded request differ from each other, and from run to run they do not."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)


def _bounded(sampling: Sampling, question: Question, ask: Ask, model: Model) -> Sampling:
    """``sampling`` with the limits that ``ask`` puts on prompt and answer together."""
    if ask.max_context is None:
        return sampling
    max_context = min(ask.max_context, model.max_context)
    room = max_context - len(question.tokens)
    if room < 1:
        what = f"The prompt has {len(question.tokens)} tokens, but max_context is {max_context}, answer included"
        raise ContextLengthExceeded(what, "Shorten the prompt, or raise max_context", param="max_context")
    return replace(sampling, max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room))
