"""Sampling parameters of a request, and the generation that returns its output."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from freedive.errors import UserError
from freedive.text.dialects.dialect import Event, Text

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "repetition", "cancelled"]

RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (-1, 2**31 - 1),
    "temperature": (0, 100),
    "top_k": (-1, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "seed": (-(2**63), 2**63 - 1),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}
"""Lowest and highest value of each number in :class:`Sampling`, both included."""

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_CHARS = 8192
"""Characters of all stop strings of a request together."""


class EngineError(Exception):
    """A request that the engine accepted and could not finish: its own fault, not the user's."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters and stop conditions. Raises :class:`UserError` (with ``param``) on an impossible value.

    The order of application is given in :mod:`freedive.engine.sampler`.
    """

    max_tokens: int | None = None
    """Longest answer in tokens, cut to the room that the context has; None or -1: to its end, 0: no answer."""
    temperature: float = 1.0
    """Divides the logits; 0 (anything below 1e-5) is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 or -1 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together weigh at least p."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive logits, multiplies negative ones, of every token in prompt or answer."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time it stands in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of single tokens, -100 to 100."""
    seed: int | None = None
    """Same request, same seed, same answer; None draws one, which ``Generation.seed`` tells."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it; empty ones are dropped."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer besides the model's own."""
    ignore_eos: bool = False
    """Go on past the model's own end tokens."""
    logprobs: int | None = None
    """Report each token's log-probability, and that of the n likeliest, under the model's unaltered distribution."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt, each after those before it."""
    repetition_detection: bool = False
    """End an answer that repeats itself without end, see :mod:`freedive.engine.repetition`."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name} is {value}", f"Choose a value from {low} to {high}", param=name)
        for token, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise UserError(
                    f"logit_bias of token {token} is {bias}", "Choose a value from -100 to 100", param="logit_bias"
                )
        lengths = [len(stop) for stop in self.stop]
        if len(lengths) > MAX_STOPS or max(lengths, default=0) > MAX_STOP_LENGTH or sum(lengths) > MAX_STOP_CHARS:
            raise UserError(
                "stop is not usable",
                f"Give at most {MAX_STOPS} strings of up to {MAX_STOP_LENGTH} characters, {MAX_STOP_CHARS} in all",
                param="stop",
            )
        # What asks for nothing has one form from here on.
        object.__setattr__(self, "max_tokens", None if self.max_tokens == -1 else self.max_tokens)
        object.__setattr__(self, "top_k", max(self.top_k, 0))
        object.__setattr__(self, "stop", tuple(filter(None, self.stop)))

    @property
    def adjusts(self) -> bool:
        """Whether penalties or bias change the logits."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or penalties != (1, 0, 0)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken. Below 1e-5 a temperature separates only rounding errors."""
        return self.temperature < 1e-5


class SamplingFields(TypedDict, total=False):
    """The fields of :class:`Sampling`, as keywords of what takes some of them and leaves the others to the model."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    repetition_detection: bool


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
