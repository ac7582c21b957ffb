"""Answers under way: what every protocol reads from, piece by piece or as a whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import chain

from starlette.requests import Request

from freedive.engine.request import Piece, TokenLogprobs
from freedive.errors import UserError
from freedive.server.model import Generation, Model
from freedive.server.stream import interleave, unless_disconnected
from freedive.text.dialects.dialect import Call, Event


@dataclass(frozen=True)
class Said:
    """What answer number ``index`` says next. ``finish`` is stop, length or tool_calls, with the last of it, and
    ``stop_reason`` what ended it besides the model: the stop string that was found, or "repetition".
    ``prompt_logprobs`` come with the first of it, and ``embedding`` instead of it, where that was asked for.
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


@dataclass(frozen=True)
class Usage:
    """Tokens: of the prompts, each counted once, and of those found in the cache; of the answers, thoughts included."""

    prompt: int
    cached: int
    generated: int
    reasoning: int

    @property
    def total(self) -> int:
        return self.prompt + self.generated


class Answers:
    """``num_choices`` answers to each question, prompt by prompt; their number counts all. Read them once.

    ``timings`` are of the first, and so is ``thinks``: whether it is thinking now. ``finishes`` are what ended each,
    None where it goes on or was left; ``failed`` tells that the fault was ours.
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
        self._num_choices = num_choices
        self._called = [False] * len(generations)
        self._num_generated = self._num_reasoning = 0

    def __len__(self) -> int:
        return len(self.generations)

    async def said(self) -> AsyncGenerator[Said, None]:
        """All that is said, as it comes. Closing it ends the answers.

        Raises EngineError, UserError for a form that proves too hard, and Unavailable when the engine shuts down.
        """
        async with aclosing(interleave(self.generations)) as items:
            try:
                async for index, piece in items:
                    yield self._read(index, piece)
            except Exception as error:
                self.failed = not isinstance(error, UserError) or error.status >= 500
                raise

    def _read(self, index: int, piece: Piece) -> Said:
        if index == 0:
            self.thinks = piece.is_thinking
        self._called[index] |= any(isinstance(event, Call) for event in piece.events)
        self._num_generated += len(piece.token_ids)
        self._num_reasoning += len(piece.token_ids) * piece.is_thinking
        called = self._called[index] and piece.finish_reason == "stop"
        self.finishes[index] = "tool_calls" if called else piece.finish_reason
        repeats = piece.finish_reason == "repetition"
        return Said(
            index,
            piece.events,
            piece.token_ids,
            piece.logprobs or (),
            "length" if repeats else self.finishes[index],  # the word that clients know for an answer that was cut
            piece.stop_string,
            "repetition" if repeats else piece.stop_string,
            None if piece.embedding is None else piece.embedding.tolist(),
            piece.prompt_logprobs,
        )

    async def whole(self, request: Request) -> list[Said]:
        """Every answer as a whole. Raises ClientDisconnect when the client of ``request`` leaves before."""

        async def collected() -> list[list[Said]]:
            parts: list[list[Said]] = [[] for _ in self.generations]
            async with aclosing(self.said()) as items:
                async for said in items:
                    parts[said.index].append(said)
            return parts

        return [_together(parts) for parts in await unless_disconnected(request, collected())]

    async def embeddings(self, request: Request) -> list[list[float]]:
        """The vector of each question, where that was asked for. Raises ClientDisconnect as :meth:`whole` does."""
        return [said.embedding for said in await self.whole(request) if said.embedding is not None]

    @property
    def usage(self) -> Usage:
        """As far as things have come."""
        asked = self.generations[:: self._num_choices]
        num_prompt = sum(generation.num_prompt_tokens for generation in asked)
        num_cached = sum(generation.num_cached_tokens for generation in asked)
        return Usage(num_prompt, num_cached, self._num_generated, self._num_reasoning)


def _together(parts: Sequence[Said]) -> Said:
    token_ids = tuple(chain.from_iterable(said.token_ids for said in parts))
    logprobs = tuple(chain.from_iterable(said.logprobs for said in parts))
    events = list(chain.from_iterable(said.events for said in parts))
    prompt_logprobs = parts[0].prompt_logprobs
    return replace(parts[-1], events=events, token_ids=token_ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
