"""Limits the tokens of thoughts: when the budget is spent, the marker that ends the thought is forced."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from freedive.arrays import Bytes
from freedive.text.dialects.dialect import Dialect, Mark, Mode, State
from freedive.text.dialects.parser import Parser
from freedive.text.tokenizer import StreamDecoder, Tokenizer

CHAR_TOKENS = 3
"""Most tokens that may be missing to complete a character, in the middle of which no thought is closed."""


class Constraint(Protocol):
    """See :class:`freedive.engine.constraint.TokenConstraint`."""

    @property
    def complete(self) -> bool: ...

    def allowed(self) -> Bytes | None: ...

    def take(self, token: int) -> None: ...


@dataclass(frozen=True)
class ThinkingBudget:
    """How many tokens a thought may have: ``num_tokens``, if that was asked for, of the ``room`` that the context has.

    ``closing`` are the tokens that end a thought, of which the first ``num_inside`` still count as a part of it.
    """

    closing: Sequence[int]
    num_inside: int
    vocab_size: int
    token_bytes: Callable[[int], bytes]
    make_decoder: Callable[[], StreamDecoder]
    make_parser: Callable[[], Parser]
    room: int
    num_tokens: int | None = None

    def constraint(self, inner: Constraint | None, max_tokens: int | None) -> Constraint | None:
        """For one answer, what keeps to the budget and to ``inner``.

        Where the answer has a form, its thoughts leave it at least half of the tokens that there are for both.
        """
        limits = [] if self.num_tokens is None else [self.num_tokens]
        if inner:
            limits.append((self.room if max_tokens is None else min(self.room, max_tokens)) // 2)
        return ThoughtConstraint(self, inner, min(limits)) if limits else inner


class ThoughtConstraint:
    """Constrains one answer so that its thoughts end after ``num_tokens`` tokens in all."""

    def __init__(self, budget: ThinkingBudget, inner: Constraint | None, num_tokens: int) -> None:
        self._budget = budget
        self._inner = inner
        self._left = num_tokens - budget.num_inside
        self._decoder, self._parser = budget.make_decoder(), budget.make_parser()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._due: list[int] = []  # tokens that close the thought, the next one last
        self._close_if_spent()

    @property
    def complete(self) -> bool:
        """Whether the answer is complete and must end."""
        return self._inner is not None and self._inner.complete

    def allowed(self) -> Bytes | None:
        """The tokens that may come next, a bit for each; None where all may."""
        allowed = self._inner.allowed() if self._inner else None
        if not self._due:
            return allowed
        byte, bit = divmod(self._due[-1], 8)
        if allowed is not None and not allowed[byte] >> bit & 1:  # the form does not let it be closed like this
            self._due.clear()
            return allowed
        only = np.zeros(self._budget.vocab_size // 8 + 1, np.uint8)
        only[byte] = 1 << bit
        return only

    def take(self, token: int) -> None:
        """Advance the constraint by ``token``."""
        if self._inner:
            self._inner.take(token)
        self._parser.read(self._decoder.push(token), ends=False)
        self._utf8.decode(self._budget.token_bytes(token))
        if self._due:
            self._due.pop()
            return
        self._left -= self._parser.mode is Mode.THOUGHT
        self._close_if_spent()

    def _close_if_spent(self) -> None:
        in_char = bool(self._utf8.getstate()[0])
        if self._parser.mode is Mode.THOUGHT and self._left <= (-CHAR_TOKENS if in_char else 0):
            self._due = list(reversed(self._budget.closing))


def thinking_budget(
    tokenizer: Tokenizer, dialect: Dialect, state: State, room: int, num_tokens: int | None
) -> ThinkingBudget | None:
    """The budget of answers in ``dialect``; None where it has no thoughts, or none that are known to be closed."""
    if dialect.messages:
        end, rest = dialect.messages.thought[1], dialect.messages.answer[0]
    elif ends := dialect.markers(Mark.END_THINK):
        end, rest = ends[0], ""  # the layout around it is the model's own
    else:
        return None
    return ThinkingBudget(
        closing=tokenizer.encode(end + rest),
        num_inside=len(tokenizer.encode(end)) - 1,
        vocab_size=tokenizer.vocab_size,
        token_bytes=tokenizer.token_bytes,
        make_decoder=lambda: tokenizer.stream(is_visible=dialect.is_visible),
        make_parser=lambda: Parser(dialect, state),
        room=room,
        num_tokens=num_tokens,
    )
