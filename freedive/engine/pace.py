"""How many prompt tokens a step takes while answers are under way, so that they are not held up for long."""

from __future__ import annotations

MIN_CHUNK = 32


class Pace:
    """A chunk that takes about ``seconds``, learned from the last: at most ``most`` tokens."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most = most
        self._seconds = seconds
        self._chunk = float(most)

    @property
    def chunk(self) -> int:
        """Prompt tokens of the next step."""
        return int(self._chunk)

    def record(self, num_tokens: int, seconds: float) -> None:
        """A step with ``num_tokens`` of prompts has taken so long. Small ones say little of larger ones."""
        if num_tokens >= min(MIN_CHUNK, self.most):
            wanted = num_tokens * self._seconds / max(seconds, 1e-6)
            low, high = max(self._chunk / 2, MIN_CHUNK), self._chunk * 2
            self._chunk = min(max(wanted, low), high, self.most)
