"""Protocols of a loaded model, such as :class:`freedive.api.LanguageModel`, with the methods that the server uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, Unpack

from freedive.engine.generation import Timings, TokenOutput
from freedive.engine.sampling import Sampling, SamplingFields
from freedive.engine.submission import Job
from freedive.engine.watch import Watches
from freedive.text.prompt import Prompt
from freedive.text.request import Input


class Generation(Protocol):
    """A running sequence. Iterating over it yields its outputs; the last output has a finish reason."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def num_cached_tokens(self) -> int: ...

    @property
    def num_prefilled_tokens(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def timings(self) -> Timings: ...

    @property
    def watches(self) -> Watches: ...

    def __aiter__(self) -> AsyncIterator[TokenOutput]: ...

    def cancel(self) -> None: ...

    def end_thoughts(self) -> None: ...


class Engine(Protocol):
    """A model's engine. ``failure`` is why it has failed, or ""; ``stalled_s`` is how long it has stalled, or 0."""

    @property
    def failure(self) -> str: ...

    @property
    def stalled_s(self) -> float: ...

    def submit_all(self, jobs: Sequence[Job]) -> Sequence[Generation]:
        """Submits all jobs, or raises UserError and submits none."""

    def place(self, generation: Any) -> int:
        """Returns how many requests came before one of its generations and wait like it."""

    def stats(self) -> Any:
        """Returns a dataclass of numbers, with the fields ``running`` and ``waiting``."""


class Tokenizer(Protocol):
    """A tokenizer; ``vocab_size`` is the highest token id plus one, ``roles`` has special tokens (bos_token ...)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def roles(self) -> Mapping[str, str]: ...

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True, max_tokens: int | None = None
    ) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class ExpertCache(Protocol):
    """The memory for experts that stay on disk, and their traffic."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """Bytes of memory and traffic of all layers, by name: see :class:`freedive.ops.paging.ExpertCacheStats`."""

    @property
    def layers(self) -> Sequence[Any]:
        """The traffic of each layer, as tuples with names."""


class Model(Protocol):
    """A loaded model. ``created`` is in seconds since 1970, ``max_context`` in tokens, ``num_bytes`` of memory."""

    @property
    def name(self) -> str: ...

    @property
    def created(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...

    def resident_bytes(self) -> int:
        """Returns how many bytes of ``num_bytes`` are in physical memory now."""

    @property
    def engine(self) -> Engine: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def can_think(self) -> bool:
        """Whether the model can think before it answers."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Everything that the bits of an answer depend on, except weights and request: code, machine and settings."""

    @property
    def lossy(self) -> Mapping[str, float]:
        """The settings in effect that change which experts compute a token, with their values; usually none."""

    def sampling(self, **given: Unpack[SamplingFields]) -> Sampling:
        """Returns the sampling settings: ``given`` fields, then those that the model's maker recommends."""

    def prepare(self, asked: Input) -> Prompt:
        """Returns the prompt of an input. Raises UserError if the model cannot honour the input."""

    def expert_load(self) -> list[list[int]]:
        """Returns how often each expert of each mixture layer was chosen, in a sample of all steps so far."""

    def expert_cache(self) -> ExpertCache | None:
        """Returns what experts that stay on disk cost so far; None if all are in memory."""

    def close(self) -> None: ...


class Renamed:
    """A model under an alias; all other attributes are those of the model."""

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._model, attribute)
