"""What every API's request becomes: prompts for a model, sampling settings, and on whose behalf."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from freedive.engine.pooling import Pooling
from freedive.server.model import Model
from freedive.text.prompt import Prompt


@dataclass(frozen=True)
class GenerationRequest:
    """A request to a model: ``prompts``, built in a worker thread, each answered ``num_choices`` times.

    ``sampling`` holds the fields that the client sets. ``user`` (for fair scheduling) and ``cache_salt`` (for the
    cache) come from the client, within the caller's ``tenant``, which :class:`Service` fills in. With ``pooling`` the
    result is embeddings instead of text. ``max_context`` bounds prompt and answer together, in tokens, where that is
    less than the model's own. ``is_guided`` tells that the answer may have a form, which can take seconds to prepare.
    """

    model: str
    prompts: Callable[[Model], Sequence[Prompt]]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    num_choices: int = 1
    user: str = ""
    cache_salt: str = ""
    tenant: str = ""
    pooling: Pooling | None = None
    keep_alive_s: float | None = None
    max_context: int | None = None
    is_guided: bool = False


def embedding_request(
    model: str, texts: Sequence[str | list[int]], pooling: Pooling = "mean", **others: Any
) -> GenerationRequest:
    """The request for embeddings of ``texts``, each a string or its tokens."""

    def prompts(model: Model) -> Sequence[Prompt]:
        encode = partial(model.tokenizer.encode, add_special=True, max_tokens=model.max_context)
        return [Prompt(encode(text) if isinstance(text, str) else text) for text in texts]

    return GenerationRequest(model, prompts, {"max_tokens": 1}, pooling=pooling, **others)
