"""Limits the tokens of thoughts: when the budget is used up, the tokens that end the thought are forced."""

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

NO_LIMIT = 1 << 62
"""A number of tokens that no answer reaches."""
CHAR_TOKENS = 3
"""The most tokens beyond the budget that complete a UTF-8 character before the thought is closed."""


class Constraint(Protocol):
    """The protocol of :class:`freedive.engine.constraint.TokenConstraint`."""

    @property
    def complete(self) -> bool: ...

    def allowed(self) -> Bytes | None: ...

    def take(self, token: int) -> None: ...


@dataclass(frozen=True)
class ThinkingBudget:
    """The limit of thoughts: ``num_tokens``, if set; ``room`` is the number of tokens left in the context.

    ``closing`` are the tokens that end a thought; the first ``num_inside`` of them count as part of the thought.
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
        """Returns a constraint of one answer that enforces the budget and ``inner``.

        If ``inner`` constrains the answer, thoughts get at most half of the tokens.
        """
        limits = [] if self.num_tokens is None else [self.num_tokens]
        if inner:
            limits.append((self.room if max_tokens is None else min(self.room, max_tokens)) // 2)
        return ThoughtConstraint(self, inner, min(limits)) if limits else inner

    def following(self, answer: Sequence[int], inner: Constraint | None) -> ThoughtConstraint:
        """Returns a constraint without a limit that has taken the tokens ``answer``, as ``inner`` has."""
        constraint = ThoughtConstraint(self, None, NO_LIMIT)
        for token in answer:
            constraint.take(token)
        constraint.inner = inner
        return constraint


class ThoughtConstraint:
    """Constrains one answer so that its thoughts have at most ``num_tokens`` tokens together."""

    def __init__(self, budget: ThinkingBudget, inner: Constraint | None, num_tokens: int) -> None:
        self._budget = budget
        self.inner = inner
        self._left = num_tokens - budget.num_inside
        self._decoder, self._parser = budget.make_decoder(), budget.make_parser()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._due: list[int] = []  # tokens that close the thought, in reverse order
        self._close_if_spent()

    def end(self) -> None:
        """Closes the thought with the next tokens, and each later thought at once."""
        self._left = min(self._left, 0)
        if not self._due:
            self._close_if_spent()

    @property
    def complete(self) -> bool:
        """Whether the answer is complete and must end."""
        return self.inner is not None and self.inner.complete

    def allowed(self) -> Bytes | None:
        """Returns the bitmask of allowed next tokens, None if all are allowed."""
        allowed = self.inner.allowed() if self.inner else None
        if not self._due:
            return allowed
        byte, bit = divmod(self._due[-1], 8)
        if allowed is not None and not allowed[byte] >> bit & 1:  # the format does not allow this token
            self._due.clear()
            return allowed
        only = np.zeros(self._budget.vocab_size // 8 + 1, np.uint8)
        only[byte] = 1 << bit
        return only

    def take(self, token: int) -> None:
        """Advances the constraint by ``token``."""
        if self.inner:
            self.inner.take(token)
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
    """Returns the budget of answers in ``dialect``, None if the dialect has no marker that ends thoughts."""
    if dialect.messages:
        end, rest = dialect.messages.thought[1], dialect.messages.answer[0]
    elif ends := dialect.markers(Mark.END_THINK):
        end, rest = ends[0], ""  # the model writes the white space around it
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
