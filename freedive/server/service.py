"""What every API's routes go to: a request, whatever format it came in, becomes answers under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from freedive.engine.pooling import Pooling
from freedive.engine.request import Sampling
from freedive.engine.submission import Job
from freedive.errors import UserError
from freedive.server.answers import Answers
from freedive.server.model import Model
from freedive.server.models import Models
from freedive.server.problems import ContextLengthExceeded
from freedive.server.visit import Visit
from freedive.text.question import Question

MAX_ANSWERS = 4096
"""Prompts times choices of one request: each takes some memory until the last is there."""


@dataclass(frozen=True)
class Ask:
    """What is asked of a model: ``questions``, made in a thread of their own, each answered ``num_choices`` times.

    ``sampling`` are the fields that the client sets. ``user`` is whose turn it is: from the client, who it asks for;
    from :class:`Service` on, the name of the caller's key, a slash, and that. What has a ``salt`` shares no cache with
    what has another. With ``pooling`` embeddings are wanted, not answers. ``max_context`` bounds prompt and answer
    together, in tokens. With ``ends_with_context`` a max_tokens for which the context has no room asks for what there
    is room for; otherwise it is refused.
    """

    model: str
    questions: Callable[[Model], Sequence[Question]]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    num_choices: int = 1
    user: str = ""
    salt: str = ""
    pooling: Pooling | None = None
    ends_with_context: bool = False
    keep_alive_s: float | None = None
    max_context: int | None = None


def to_embed(model: str, texts: Sequence[str | list[int]], pooling: Pooling = "mean", **others: Any) -> Ask:
    """Embeddings of ``texts``, each as it is or as its tokens."""

    def questions(model: Model) -> Sequence[Question]:
        encode = model.tokenizer.encode
        return [Question(encode(text, add_special=True) if isinstance(text, str) else text) for text in texts]

    return Ask(model, questions, {"max_tokens": 1}, pooling=pooling, **others)


@dataclass(frozen=True)
class Service:
    """The models, and answers from them."""

    models: Models

    async def answers(self, ask: Ask, request: Request) -> Answers:
        """Begin to answer, in the name of whoever makes the ``request``.

        Raises UserError for what cannot be asked, Overloaded when too much is asked at once.
        """
        visit: Visit = request.state.visit
        ask = replace(ask, user=f"{visit.caller}/{ask.user}")
        async with self.models.use(ask.model, ask.keep_alive_s, manages=manages(request)) as model:
            sampling = model.sampling(**ask.sampling)
            visit.answers = await run_in_threadpool(_submit, model, sampling, ask)
        return visit.answers

    async def questions(self, ask: Ask) -> tuple[Model, Sequence[Question]]:
        """What would be asked, and of whom. Raises UserError for what cannot be asked."""
        async with self.models.use(ask.model, ask.keep_alive_s) as model:
            return model, await run_in_threadpool(ask.questions, model)


def manages(request: Request) -> bool:
    """Whether the operator asks, whose preloaded models are: everybody, where no key is needed."""
    visit: Visit = request.state.visit
    return not visit.caller


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
    try:
        generations = model.engine.submit_all(jobs)
    except UserError as error:
        if any(len(job.prompt) + (job.sampling.max_tokens or 1) > model.max_context for job in jobs):
            raise ContextLengthExceeded(error.what, error.remedy, param=error.param) from error
        raise
    return Answers(model, questions, generations, ask.num_choices)


def _job(question: Question, sampling: Sampling, ask: Ask) -> Job:
    return Job(
        question.tokens,
        sampling,
        continues=question.continues,
        keep=question.keeps,
        guide=question.guide,
        pooling=ask.pooling,
        salt=ask.salt,
        user=ask.user,
    )


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Choices of a seeded request differ from each other, and from run to run they do not."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)


def _bounded(sampling: Sampling, question: Question, ask: Ask, model: Model) -> Sampling:
    """``sampling`` with the limits that ``ask`` puts on prompt and answer together."""
    num_tokens = len(question.tokens) + (sampling.max_tokens or 0)
    if ask.ends_with_context and num_tokens > model.max_context:
        return replace(sampling, max_tokens=None)
    if ask.max_context is None:
        return sampling
    if ask.max_context > model.max_context:
        what = f"max_context is {ask.max_context}, but the model's is {model.max_context}"
        raise UserError(what, "Choose a smaller value", param="max_context")
    room = ask.max_context - len(question.tokens)
    if room < (sampling.max_tokens or 1):
        what = f"Prompt and answer have {num_tokens} tokens, but max_context is {ask.max_context}"
        raise ContextLengthExceeded(what, "Shorten the prompt, or raise max_context", param="max_context")
    return sampling if sampling.max_tokens else replace(sampling, max_tokens=room)
