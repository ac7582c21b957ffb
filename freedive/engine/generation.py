"""A generation delivers the output of one request: tokens, token counts and timings."""

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

from freedive.engine.watch import Watches
from freedive.errors import Unavailable, UserError
from freedive.text.dialects.dialect import Event, Text

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "repetition", "cancelled"]


class EngineError(Exception):
    """The engine accepted a request but could not finish it, because of a fault in the engine or the model."""


@dataclass(frozen=True)
class Usage:
    """Token counts of prompts, of their cached part, of answers, and of the thoughts in the answers."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thought_tokens: int

    @property
    def total_tokens(self) -> int:
        """Number of tokens of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability (natural logarithm) of one token, and of the likeliest tokens as (id, logprob), best first.

    The first token of a prompt has no predecessor: its ``logprob`` is None and its ``top`` is empty.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Timings:
    """Timestamps of a request (``time.perf_counter``, seconds); a duration that has not ended lasts until now."""

    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    num_generated: int = 0
    num_preemptions: int = 0

    @property
    def queued_s(self) -> float:
        """Seconds from submission to the start of the request's first step."""
        return self._until(self.started_at) - self.submitted_at

    @property
    def prefill_s(self) -> float:
        """Seconds from the start of the request's first step to its first token."""
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
        """Decoding speed: the number of tokens after the first divided by ``decode_s``; 0 before the second token."""
        return (self.num_generated - 1) / self.decode_s if self.num_generated > 1 else 0.0

    def _until(self, moment: float | None) -> float:
        if moment is not None:
            return moment
        return time.perf_counter() if self.finished_at is None else self.finished_at


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """The output of one token.

    ``events`` is empty while the text may be an incomplete character, marker or stop string. ``token_ids`` includes an
    end token. ``is_thinking`` is true if the token is part of a thought. Only the last output of a request has
    ``finish_reason``, ``timings`` and, if a stop string ended the answer, ``stop_string``. Only the first output has
    ``prompt_logprobs``, one for each token of the prompt. The output of an embedding request has ``embedding`` float32
    [hidden] and no tokens.
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
        """The text that the token adds to the answer."""
        return "".join(event.text for event in self.events if isinstance(event, Text))


Delivery = TokenOutput | EngineError | UserError
"""One item that a generation delivers; an error is the last item."""


def last_delivery(error: BaseException, failure: str) -> Delivery:
    """Returns what ends a request after ``error``: the same if it is Unavailable, else EngineError(failure)."""
    return Unavailable(error.what, error.remedy) if isinstance(error, Unavailable) else EngineError(failure)


class Generation:
    """The output of one request. One consumer iterates over it with ``for`` or ``async for``.

    ``num_cached_tokens`` counts the prompt tokens that were found in the prefix cache; it is final when the first
    output arrives. ``num_prefilled_tokens`` counts the prompt tokens, those included, that need no more computation.
    Through ``watches`` others see how its tokens are chosen, from any moment on.

    The iteration ends after the output with a ``finish_reason``. It raises :class:`EngineError` if the engine fails,
    and UserError if the requested constraint cannot be satisfied. Leaving the iteration early cancels the request.
    """

    def __init__(
        self,
        id: str,
        num_prompt_tokens: int,
        seed: int,
        cancel: Callable[[Generation], None],
        end_thoughts: Callable[[Generation], None] | None = None,
    ) -> None:
        self.id = id
        self.num_prompt_tokens = num_prompt_tokens
        self.num_cached_tokens = self.num_prefilled_tokens = 0
        self.seed = seed
        self.watches = Watches()
        self.timings = Timings(time.perf_counter())
        self._cancel, self._end_thoughts = cancel, end_thoughts
        self._arrived: SimpleQueue[Delivery] = SimpleQueue()
        self._notify: Callable[[], None] | None = None
        self._ended = False

    def cancel(self) -> None:
        """Ends the request before its next step with the finish reason ``cancelled``; does nothing after its end."""
        if self.timings.finished_at is None:
            self._cancel(self)

    def end_thoughts(self) -> None:
        """Ends the thoughts of the answer with its next token, so that the text follows; does nothing after them."""
        if self._end_thoughts and self.timings.finished_at is None:
            self._end_thoughts(self)

    def deliver(self, item: Delivery) -> None:
        """Passes ``item`` to the consumer. Only the engine thread calls it."""
        self._arrived.put(item)
        if notify := self._notify:
            try:
                notify()
            except Exception:  # an error in the consumer must not stop the engine
                log.exception("the reader of %s could not be woken", self.id)

    def finish(self, last: Delivery) -> None:
        """Passes the ``last`` item to the consumer. Only the engine thread calls it."""
        self.timings.finished_at = time.perf_counter()
        self.deliver(last)

    def __iter__(self) -> Iterator[TokenOutput]:
        try:
            while not self._ended:
                yield self._open(self._arrived.get())
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        import asyncio  # imported here because the import is slow and only a server needs it

        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed, so there is no consumer any more
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
