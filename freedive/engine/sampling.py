"""The sampling parameters of a request and their allowed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from freedive.errors import UserError
from freedive.field_types import check_fields

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
"""Minimum and maximum (both allowed) of each number in :class:`Sampling`."""

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_CHARS = 8192
"""Maximum number of characters in all stop strings of a request together."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters and stop conditions. Raises :class:`UserError` (with ``param``) on an impossible value.

    The order of application is given in :mod:`freedive.engine.sampler`.
    """

    max_tokens: int | None = None
    """Maximum number of tokens of the answer; None or -1 allows all that the context has room for, 0 no answer."""
    temperature: float = 1.0
    """Divides the logits; 0 (every value below 1e-5) is greedy sampling."""
    top_k: int = 0
    """Keeps the k likeliest tokens; 0 or -1 keeps all."""
    top_p: float = 1.0
    """Keeps the fewest likeliest tokens whose total probability is at least p."""
    min_p: float = 0.0
    """Keeps the tokens that are at least min_p times as likely as the likeliest token."""
    repetition_penalty: float = 1.0
    """Divides positive logits and multiplies negative logits of every token that is in the prompt or the answer."""
    presence_penalty: float = 0.0
    """Is subtracted once from the logit of every token that is in the answer."""
    frequency_penalty: float = 0.0
    """Is subtracted from the logit of a token once for each occurrence of the token in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Is added to the logits of single tokens, by token id; -100 to 100."""
    seed: int | None = None
    """The same request with the same seed gives the same answer; None draws a seed, which is ``Generation.seed``."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it; empty strings are ignored."""
    stop_token_ids: frozenset[int] = frozenset()
    """Token ids that end the answer, in addition to the model's end tokens."""
    ignore_eos: bool = False
    """Continues the answer after the model's end tokens."""
    logprobs: int | None = None
    """Reports the log-probability of each token and of the n likeliest, before penalties, bias and temperature."""
    prompt_logprobs: int | None = None
    """Reports the same for each token of the prompt."""
    repetition_detection: bool = False
    """Ends an answer that repeats itself in a loop, see :mod:`freedive.engine.repetition`."""

    def __post_init__(self) -> None:
        check_fields(self)
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
        # Each setting that is switched off has one value from here on.
        object.__setattr__(self, "max_tokens", None if self.max_tokens == -1 else self.max_tokens)
        object.__setattr__(self, "top_k", max(self.top_k, 0))
        object.__setattr__(self, "stop", tuple(filter(None, self.stop)))
        object.__setattr__(self, "stop_token_ids", frozenset(self.stop_token_ids))

    @property
    def adjusts(self) -> bool:
        """Whether penalties or bias change the logits."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or penalties != (1, 0, 0)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen: a temperature below 1e-5 amplifies only rounding errors."""
        return self.temperature < 1e-5


class SamplingFields(TypedDict, total=False):
    """The fields of :class:`Sampling` as optional keyword arguments; the model recommends the values of the others."""

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
