"""The generation that returns the output of a request, and what is known of it in the end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

import numpy as np
import numpy.typing as npt

from freedive.errors import UserError
from freedive.text.dialects.dialect import Event, Text

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "repetition", "cancelled"]


class EngineError(Exception):
    """A request that the engine accepted and could not finish: its own fault, not the user's."""


@dataclass(frozen=True)
class Usage:
    """Token counts: of prompts, of those found in the cache, of answers, and of the thoughts among these."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thought_tokens: int

    @property
    def total_tokens(self) -> int:
        """Of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities: of the token chosen, and of the likeliest (id, logprob), best first.

    The first token of a prompt, which follows nothing, has None and no others.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Timings:
    """Timestamps of a request, by ``time.perf_counter``; a duration that has not ended counts up to now."""

    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    num_generated: int = 0
    num_preemptions: int = 0

    @property
    def queued_s(self) -> float:
        """Seconds from submission until the first step that took it in."""
        return self._until(self.started_at) - self.submitted_at

    @property
    def prefill_s(self) -> float:
        """Seconds from its first step to its first token."""
        return self.first_token_s - self.queued_s

    @property
    def first_token_s(self) -> float:
        """Seconds from submission to the first token."""
        return self._until(self.first_token_at) - self.submitted_at

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the end."""
        return self._until(self.finished_at) - self._until(self.first_token_at)

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first, by the second; 0 before there are any."""
        return (self.num_generated - 1) / self.decode_s if self.num_generated > 1 else 0.0

    def _until(self, moment: float | None) -> float:
        if moment is not None:
            return moment
        return time.perf_counter() if self.finished_at is None else self.finished_at


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """The output of one token.

    There are no ``events`` while a character, a marker or a stop string may still be completed. ``token_ids`` includes
    an end token. Only the last piece has ``finish_reason``, ``timings`` and, where that is what ended the answer,
    ``stop_string``. ``is_thinking`` tells that the token is part of a thought. Only the first piece has
    ``prompt_logprobs``, one for each token of the prompt. ``embedding`` float32 [hidden] is there where that was asked
    for, instead of tokens.
    """

    events: Sequence[Event]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    timings: Timings | None = None
    stop_string: str | None = None
    embedding: npt.NDArray[np.float32] | None = None
    is_thinking: bool = False
    prompt_logprobs: Sequence[TokenLogprobs] = ()

    @property
    def text(self) -> str:
        """What the token adds to the text of the answer."""
        return "".join(event.text for event in self.events if isinstance(event, Text))


Delivery = TokenOutput | EngineError | UserError
"""One item that a generation delivers; an error is the last item."""


class Generation:
    """The output of one request. Iterate over it with ``for`` or ``async for``, from one consumer.

    ``num_cached_tokens`` of the prompt need not be computed, since they were found in the prefix cache; it is final by
    the first piece.

    The iteration ends after the piece with a ``finish_reason`` and raises :class:`EngineError` when the engine fails,
    UserError where the answer proves to be impossible as it was asked for.
    Leaving it early cancels the request.
    """

    def __init__(self, id: str, num_prompt_tokens: int, seed: int, cancel: Callable[[Generation], None]) -> None:
        self.id = id
        self.num_prompt_tokens = num_prompt_tokens
        self.num_cached_tokens = 0
        self.seed = seed
        self.timings = Timings(time.perf_counter())
        self._cancel = cancel
        self._arrived: SimpleQueue[Delivery] = SimpleQueue()
        self._notify: Callable[[], None] | None = None
        self._ended = False

    def cancel(self) -> None:
        """End the request before its next step; its last piece says ``cancelled``. Does nothing after the end."""
        if self.timings.finished_at is None:
            self._cancel(self)

    def deliver(self, item: Delivery) -> None:
        """Hand over what the engine made (engine thread)."""
        self._arrived.put(item)
        if notify := self._notify:
            try:
                notify()
            except Exception:  # a reader's fault is not the engine's
                log.exception("the reader of %s could not be woken", self.id)

    def finish(self, last: Delivery) -> None:
        """Hand over the ``last`` item (engine thread)."""
        self.timings.finished_at = time.perf_counter()
        self.deliver(last)

    def __iter__(self) -> Iterator[TokenOutput]:
        try:
            while not self._ended:
                yield self._open(self._arrived.get())
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        import asyncio  # imported here because it takes long, and only a server needs it

        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(arrived.set)

        self._notify = notify
        try:
            while not self._ended:
                while self._arrived.empty():
                    await arrived.wait()
                    arrived.clear()
                yield self._open(self._arrived.get_nowait())
        finally:
            self._notify = None
            self.cancel()

    def _open(self, item: Delivery) -> TokenOutput:
        if isinstance(item, Exception):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item
