"""What an answer has to look like, token by token."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]
"""A set of tokens: bit ``t % 8`` of byte ``t // 8`` is token ``t``. Those beyond the last byte are not in it."""


class Guide(Protocol):
    """Follows one answer, whose form it knows. What it raises ends the request: UserError as the user's
    matter, all else as the engine's fault.
    """

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the end."""

    def allowed(self) -> Bits | None:
        """The tokens that may come next, at least one; None where all may."""

    def take(self, token: int) -> None:
        """Take note that ``token`` has come."""
