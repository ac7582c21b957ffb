"""Running completions, which each API reads as a stream of deltas or as whole results."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import chain

from starlette.requests import Request

from freedive.engine.generation import TokenLogprobs, TokenOutput, Usage
from freedive.engine.recording import RecordedAnswer, Recording
from freedive.engine.request import GenerationRequest
from freedive.errors import UserError
from freedive.server.http_errors import status_of
from freedive.server.model import Generation, Model
from freedive.server.stream import interleave, unless_disconnected
from freedive.text.dialects.dialect import Call, Event


@dataclass(frozen=True)
class Delta:
    """The next part of completion number ``index``.

    ``finish`` is set on the last delta: stop, length or tool_calls. ``stop_reason`` is then what ended the completion
    besides the model: the stop string that was found, or "repetition". ``prompt_logprobs`` come with the first delta;
    an ``embedding`` replaces the text if the request asked for embeddings.
    """

    index: int
    events: Sequence[Event]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: str | None = None
    stop_string: str | None = None
    stop_reason: str | None = None
    embedding: list[float] | None = None
    prompt_logprobs: Sequence[TokenLogprobs] = ()


class Completions:
    """The ``num_choices`` completions of each prompt of a request, ordered by prompt. They can be read once.

    ``timings`` and ``thinks`` (whether the model is thinking now) are those of the first completion. ``finishes`` holds
    the finish reason of each, None while it runs or if the client disconnected; ``failed`` is set by a failure of the
    server. ``request`` is the request, if the server keeps requests for replay, else None.
    """

    def __init__(
        self, model: Model, generations: Sequence[Generation], num_choices: int, *, thinks: bool = False
    ) -> None:
        self.model = model
        self.generations = generations
        self.timings = generations[0].timings
        self.finishes: list[str | None] = [None] * len(generations)
        self.failed = False
        self.thinks = thinks
        self.request: GenerationRequest | None = None
        self._token_ids: list[list[int]] = [[] for _ in generations]
        self._num_choices = num_choices
        self._called = [False] * len(generations)
        self._num_generated = self._num_reasoning = 0

    def __len__(self) -> int:
        return len(self.generations)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yields the deltas of all completions as they arrive. Closing the generator cancels the completions.

        Raises EngineError, UserError for a grammar that is too complex, and Unavailable when the engine shuts down.
        """
        async with aclosing(interleave(self.generations)) as items:
            try:
                async for index, output in items:
                    yield self._read(index, output)
            except Exception as error:
                self.failed = not isinstance(error, UserError) or status_of(error) >= 500
                raise

    def _read(self, index: int, output: TokenOutput) -> Delta:
        if index == 0:
            self.thinks = output.is_thinking
        self._token_ids[index] += output.token_ids
        self._called[index] |= any(isinstance(event, Call) for event in output.events)
        self._num_generated += len(output.token_ids)
        self._num_reasoning += len(output.token_ids) * output.is_thinking
        called = self._called[index] and output.finish_reason == "stop"
        self.finishes[index] = "tool_calls" if called else output.finish_reason
        repeats = output.finish_reason == "repetition"
        return Delta(
            index,
            output.events,
            output.token_ids,
            output.logprobs or (),
            "length" if repeats else self.finishes[index],  # the finish reason that clients know for a cut answer
            output.stop_string,
            "repetition" if repeats else output.stop_string,
            None if output.embedding is None else output.embedding.tolist(),
            output.prompt_logprobs,
        )

    async def collect(self, request: Request) -> list[Delta]:
        """Returns each completion as one delta. Raises ClientDisconnect if the client disconnects first."""

        async def collected() -> list[list[Delta]]:
            parts: list[list[Delta]] = [[] for _ in self.generations]
            async with aclosing(self.deltas()) as items:
                async for delta in items:
                    parts[delta.index].append(delta)
            return parts

        return [_merged(parts) for parts in await unless_disconnected(request, collected())]

    async def embeddings(self, request: Request) -> list[list[float]]:
        """Returns the embedding of each prompt, if requested. Raises ClientDisconnect as :meth:`collect` does."""
        return [delta.embedding for delta in await self.collect(request) if delta.embedding is not None]

    @property
    def recording(self) -> Recording | None:
        """The request with its answers so far; None for embeddings, and if the server does not keep requests."""
        if self.request is None or self.request.pooling:
            return None
        parts = zip(self.generations, self._token_ids, self.finishes, strict=True)
        answers = tuple(RecordedAnswer(made.seed, tuple(ids), finish or "") for made, ids, finish in parts)
        return Recording(self.request, answers, self.model.fingerprint)

    @property
    def usage(self) -> Usage:
        """Token counts of all completions so far."""
        asked = self.generations[:: self._num_choices]
        num_prompt = sum(generation.num_prompt_tokens for generation in asked)
        num_cached = sum(generation.num_cached_tokens for generation in asked)
        return Usage(num_prompt, num_cached, self._num_generated, self._num_reasoning)


def _merged(parts: Sequence[Delta]) -> Delta:
    token_ids = tuple(chain.from_iterable(delta.token_ids for delta in parts))
    logprobs = tuple(chain.from_iterable(delta.logprobs for delta in parts))
    events = list(chain.from_iterable(delta.events for delta in parts))
    prompt_logprobs = parts[0].prompt_logprobs
    return replace(parts[-1], events=events, token_ids=token_ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
