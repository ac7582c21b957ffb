"""The interface of constraints, which restrict the next token of an answer."""

from __future__ import annotations

from typing import Protocol

from freedive.arrays import Bytes


class TokenConstraint(Protocol):
    """Restricts the tokens of one answer. An exception that it raises ends the request: UserError reports a constraint
    that the user has to change, and any other exception is reported as an EngineError.
    """

    @property
    def complete(self) -> bool:
        """Whether the answer is complete and must end."""

    def allowed(self) -> Bytes | None:
        """Returns the tokens that may come next, at least one, or None if all tokens may.

        The result is a bit mask, uint8: bit ``t % 8`` of byte ``t // 8`` is set if token ``t`` may come next. Tokens
        beyond the last byte may not.
        """

    def take(self, token: int) -> None:
        """Advances the constraint by ``token``, which is now part of the answer."""
