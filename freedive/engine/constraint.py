"""The interface of constraints, which choose the tokens that an answer may continue with."""

from __future__ import annotations

from typing import Protocol

from freedive.arrays import Bytes

"""A set of tokens: bit ``t % 8`` of byte ``t // 8`` is token ``t``. Those beyond the last byte are not in it."""


class TokenConstraint(Protocol):
    """Constrains the tokens of one answer. What it raises ends the request: a UserError is the user's fault,
    any other exception the engine's.
    """

    @property
    def complete(self) -> bool:
        """Whether the answer is complete and must end."""

    def allowed(self) -> Bytes | None:
        """The tokens that may come next, at least one; None where all may."""

    def take(self, token: int) -> None:
        """Advance the constraint by ``token``."""
