"""The protocols that the server needs of a loaded model, such as :class:`freedive.api.LanguageModel`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, Unpack

from freedive.engine.generation import Timings, TokenOutput
from freedive.engine.sampling import Sampling, SamplingFields
from freedive.engine.submission import Job
from freedive.text.prompt import Prompt
from freedive.text.request import Input


class Generation(Protocol):
    """A running request: iterate for its pieces, the last of which has a finish reason."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def num_cached_tokens(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def timings(self) -> Timings: ...

    def __aiter__(self) -> AsyncIterator[TokenOutput]: ...

    def cancel(self) -> None: ...


class Engine(Protocol):
    """``failure`` is why it can do nothing any more, ``stalled_s`` for how long it has done nothing, if too long."""

    @property
    def failure(self) -> str: ...

    @property
    def stalled_s(self) -> float: ...

    def submit_all(self, jobs: Sequence[Job]) -> Sequence[Generation]:
        """All of them or none."""

    def stats(self) -> Any:
        """A dataclass of plain numbers, ``running`` and ``waiting`` among them."""


class Tokenizer(Protocol):
    """``vocab_size`` is one more than the highest id."""

    @property
    def vocab_size(self) -> int: ...

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True, max_tokens: int | None = None
    ) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


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
        """How much of ``num_bytes`` is in physical memory now."""

    @property
    def engine(self) -> Engine: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def can_think(self) -> bool:
        """Whether it can be asked for thoughts before the answer."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What the bits of answers depend on, besides weights and request."""

    def sampling(self, **given: Unpack[SamplingFields]) -> Sampling:
        """What is given, over what the model's maker recommends."""

    def prepare(self, asked: Input) -> Prompt:
        """The prompt that asks for this. UserError for what cannot be."""

    def expert_load(self) -> list[list[int]]:
        """How often each expert of each layer with experts was chosen, in a sample of all steps so far."""

    def close(self) -> None: ...


class Renamed:
    """A model under another name. All else is the model's own."""

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._model, attribute)
