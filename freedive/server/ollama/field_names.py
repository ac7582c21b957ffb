"""Errors that name request fields as Ollama does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from freedive.errors import UserError

NAMES = {
    "max_context": "num_ctx",
    "max_tokens": "num_predict",
    "reasoning_effort": "think",
    "repetition_penalty": "repeat_penalty",
    "thinking": "think",
}
"""Ollama's name of a field by freedive's name."""


@contextmanager
def with_ollama_names() -> Iterator[None]:
    """Raises each UserError of the block again, with Ollama's name of the field."""
    try:
        yield
    except UserError as error:
        ours = error.param or ""
        if ours not in NAMES:
            raise
        theirs = NAMES[ours]
        what, remedy = (text.replace(ours, theirs) for text in (error.what, error.remedy))
        raise UserError(what, remedy, param=theirs) from error
