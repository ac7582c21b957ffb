"""Chooses the number of prompt tokens in a step, so that decoding sequences do not wait long for it."""

from __future__ import annotations

MIN_CHUNK = 32

STALL_S = 0.25
"""About how long a step may take while answers are under way: as long, they have to wait for their next token."""


class ChunkSizer:
    """Adapts the prefill chunk so that a step takes about ``seconds``; a chunk has at most ``max_chunk`` tokens."""

    def __init__(self, max_chunk: int, seconds: float) -> None:
        self.max_chunk = max_chunk
        self._seconds = seconds
        self._chunk = float(max_chunk)

    @property
    def chunk(self) -> int:
        """Prompt tokens of the next step."""
        return int(self._chunk)

    def record(self, num_tokens: int, seconds: float) -> None:
        """Record that a step with ``num_tokens`` prompt tokens took ``seconds``. Small steps are ignored."""
        if num_tokens >= min(MIN_CHUNK, self.max_chunk):
            wanted = num_tokens * self._seconds / max(seconds, 1e-6)
            low, high = max(self._chunk / 2, MIN_CHUNK), self._chunk * 2
            self._chunk = min(max(wanted, low), high, self.max_chunk)
