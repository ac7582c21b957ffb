"""One request to a model, as plain data that can be written as JSON and run again."""

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
    """A request to a ``model`` on behalf of ``scope``: ``n`` answers to each of ``inputs``.

    ``sampling`` has the fields of :class:`freedive.engine.sampling.Sampling` that the caller sets; the others have the
    values that the model recommends. With ``pooling`` the result is embeddings instead of text. ``max_context`` limits
    prompt and answer together, in tokens, if it is less than the limit of the model. A server unloads the model after
    ``keep_alive_s`` seconds without requests.
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
        """Whether an input may need a grammar, which can take seconds to compile."""
        return any(each.is_guided for each in self.inputs)

    def to_json(self) -> str:
        """Returns the request as JSON. Raises UserError if a value cannot be written as JSON."""
        return write_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> GenerationRequest:
        """Reads a request that :meth:`to_json` wrote. Raises UserError for any other text and for unknown fields."""
        request = read_json(cls, text)
        return replace(request, sampling=read_sampling(request.sampling))

    def jobs(self, prompts: Sequence[Prompt], sampling: Sampling, max_context: int) -> list[Job]:
        """Returns ``n`` jobs for each of ``prompts``, the prepared inputs, for a model with this ``max_context``.

        Raises ContextLengthExceeded if a prompt leaves no room for an answer.
        """
        return [
            Job(prompt, _seeded(bounded, choice), self.scope, self.pooling)
            for prompt in prompts
            for bounded in [self._bounded(sampling, prompt, max_context)]
            for choice in range(self.n)
        ]

    def _bounded(self, sampling: Sampling, prompt: Prompt, max_context: int) -> Sampling:
        """Returns ``sampling`` with ``max_tokens`` limited by the request's ``max_context``."""
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
    """Returns a request for embeddings of ``texts``, each a string or its token ids; ``others`` are further fields."""
    return GenerationRequest(model, tuple(map(TextInput, texts)), {"max_tokens": 1}, pooling=pooling, **others)


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Returns ``sampling`` with a seed for each ``choice``: choices differ, but every run gives the same choices."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)


def write_json(value: Any) -> str:
    """Returns a dataclass as JSON, with Infinity and NaN as constants. Raises UserError if a value has no JSON form."""
    from pydantic_core import to_json

    try:
        return to_json(value, indent=1, inf_nan_mode="constants").decode()
    except ValueError as error:
        raise UserError(f"The request cannot be written as JSON ({error})", "Give it plain data") from None


def read_json(kind: type[T], text: str | bytes) -> T:
    """Reads a ``kind`` that :func:`write_json` wrote. Raises UserError for any other text.

    It does not check ``sampling``: see :func:`read_sampling`.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Any, kind)).validate_json(text)
    except ValidationError as error:
        raise _unreadable(error) from None
    return value


def read_sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``fields`` from JSON, converted to the types of Sampling. Raises UserError if that is impossible."""
    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(Sampling)
    if unknown := sorted(fields.keys() - hints.keys()):
        raise UserError(f"There is no sampling field {quote(unknown[0])}", "Leave it out", param="sampling")
    try:
        return {name: TypeAdapter(hints[name]).validate_python(value) for name, value in fields.items()}
    except ValidationError as error:
        raise _unreadable(error) from None


def _unreadable(error: ValidationError) -> UserError:
    """Returns one of pydantic's errors as a UserError.

    Pydantic reports errors for every type of a union; the type with the fewest errors is likely the intended one.
    """
    errors = error.errors(include_url=False)
    counts = Counter(each["loc"][:3] for each in errors)
    first = min(errors, key=lambda each: (counts[each["loc"][:3]], each["type"] != "unexpected_keyword_argument"))
    place = quote(".".join(map(str, first["loc"])))[1:-1] or "it"
    return UserError(f"This is not a request: {place}: {first['msg'].lower()}", "Write it with to_json")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # imported here because only reading and writing JSON needs it

    return TypeAdapter(kind)
