"""One request to a model, as plain data that can be written down and answered again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, get_type_hints

from freedive.engine.pooling import Pooling
from freedive.engine.sampling import Sampling
from freedive.engine.submission import UNSCOPED, Job, Scope
from freedive.errors import ContextLengthExceeded, UserError
from freedive.field_types import check_fields
from freedive.files import quote
from freedive.text.prompt import Prompt
from freedive.text.request import Input, TextInput

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

STRICT: ConfigDict = {"extra": "forbid", "strict": True}
"""How dataclasses are read from JSON."""


@dataclass(frozen=True)
class GenerationRequest:
    """A request to a ``model``: each of ``inputs`` is answered ``n`` times, on behalf of ``scope``.

    ``sampling`` holds the fields of :class:`freedive.engine.sampling.Sampling` that the caller sets; the model's
    maker advises the others. With ``pooling`` the result is embeddings instead of text. ``max_context`` bounds prompt
    and answer together, in tokens, where that is less than the model's own. A server unloads a model that is not used
    for ``keep_alive_s``.
    """

    __pydantic_config__: ClassVar = STRICT

    model: str
    inputs: tuple[Input, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    scope: Scope = UNSCOPED
    pooling: Pooling | None = None
    max_context: int | None = None
    keep_alive_s: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n < 1:
            raise UserError(f"n is {self.n}", "Ask for at least one answer", param="n")

    @property
    def is_guided(self) -> bool:
        """Whether an answer may have a form, which can take seconds to prepare."""
        return any(each.is_guided for each in self.inputs)

    def to_json(self) -> str:
        """The request as JSON. UserError where a part of it has none."""
        return write_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> GenerationRequest:
        """The request that :meth:`to_json` wrote. UserError for anything else, unknown names among it."""
        request = read_json(cls, text)
        return replace(request, sampling=read_sampling(request.sampling))

    def jobs(self, prompts: Sequence[Prompt], sampling: Sampling, max_context: int) -> list[Job]:
        """``n`` jobs for each of ``prompts``, which the inputs became, for a model with this ``max_context``.

        Raises ContextLengthExceeded where a prompt leaves no room.
        """
        return [
            Job(prompt, _seeded(bounded, choice), self.scope, self.pooling)
            for prompt in prompts
            for bounded in [self._bounded(sampling, prompt, max_context)]
            for choice in range(self.n)
        ]

    def _bounded(self, sampling: Sampling, prompt: Prompt, max_context: int) -> Sampling:
        """``sampling`` with the limit that the request puts on prompt and answer together."""
        if self.max_context is None:
            return sampling
        max_context = min(self.max_context, max_context)
        room = max_context - len(prompt.tokens)
        if room < 1:
            what = f"The prompt has {len(prompt.tokens)} tokens, but max_context is {max_context}, answer included"
            raise ContextLengthExceeded(what, "Shorten the prompt, or raise max_context", param="max_context")
        return replace(sampling, max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room))


def embedding_request(
    model: str, texts: Sequence[str | Sequence[int]], pooling: Pooling = "mean", **others: Any
) -> GenerationRequest:
    """The request for embeddings of ``texts``, each a string or its tokens; ``others`` are further fields."""
    return GenerationRequest(model, tuple(map(TextInput, texts)), {"max_tokens": 1}, pooling=pooling, **others)


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Choices of a seeded request differ from each other, and from run to run they do not."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)


def write_json(value: Any) -> str:
    """A dataclass as JSON, with Infinity and NaN as Python's json writes them. UserError where a part has none."""
    from pydantic_core import to_json

    try:
        return to_json(value, indent=1, inf_nan_mode="constants").decode()
    except ValueError as error:
        raise UserError(f"The request cannot be written as JSON ({error})", "Give it plain data") from None


def read_json(kind: type[T], text: str | bytes) -> T:
    """The ``kind`` that :func:`write_json` wrote; sampling is yet to be read. UserError for anything else."""
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Any, kind)).validate_json(text)
    except ValidationError as error:
        raise _unreadable(error) from None
    return value


def read_sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` from JSON with the types that Sampling has. UserError where they are others."""
    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(Sampling)
    if unknown := sorted(fields.keys() - hints.keys()):
        raise UserError(f"There is no sampling field {quote(unknown[0])}", "Leave it out", param="sampling")
    try:
        return {name: TypeAdapter(hints[name]).validate_python(value) for name, value in fields.items()}
    except ValidationError as error:
        raise _unreadable(error) from None


def _unreadable(error: ValidationError) -> UserError:
    """What is told of pydantic's errors: they are of each kind of input in turn, so one of the kind that fits best."""
    errors = error.errors(include_url=False)
    counts = Counter(each["loc"][:3] for each in errors)
    first = min(errors, key=lambda each: (counts[each["loc"][:3]], each["type"] != "unexpected_keyword_argument"))
    place = quote(".".join(map(str, first["loc"])))[1:-1] or "it"
    return UserError(f"This is no request: {place}: {first['msg'].lower()}", "Write it with to_json")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # imported here: only what writes or reads requests needs it

    return TypeAdapter(kind)
