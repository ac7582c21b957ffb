"""What every API's request becomes: prompts for a model, sampling settings, and on whose behalf."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from freedive.engine.pooling import Pooling
from freedive.server.model import Model
from freedive.text.question import Question


@dataclass(frozen=True)
class GenerationRequest:
    """A request to a model: ``questions``, built in a worker thread, each answered ``num_choices`` times.

    ``sampling`` holds the fields that the client sets. ``user`` (for fair scheduling) and ``salt`` (for the cache)
    come from the client, within the caller's ``tenant``, which :class:`Service` fills in. With ``pooling`` the result
    is embeddings instead of text. ``max_context`` bounds prompt and answer together, in tokens, where that is less
    than the model's own. ``is_guided`` tells that the answer may have a form, which can take seconds to prepare.
    """

    model: str
    questions: Callable[[Model], Sequence[Question]]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    num_choices: int = 1
    user: str = ""
    salt: str = ""
    tenant: str = ""
    pooling: Pooling | None = None
    keep_alive_s: float | None = None
    max_context: int | None = None
    is_guided: bool = False


def embedding_request(
    model: str, texts: Sequence[str | list[int]], pooling: Pooling = "mean", **others: Any
) -> GenerationRequest:
    """The request for embeddings of ``texts``, each a string or its tokens."""

    def questions(model: Model) -> Sequence[Question]:
        encode = partial(model.tokenizer.encode, add_special=True, max_tokens=model.max_context)
        return [Question(encode(text) if isinstance(text, str) else text) for text in texts]

    return GenerationRequest(model, questions, {"max_tokens": 1}, pooling=pooling, **others)
