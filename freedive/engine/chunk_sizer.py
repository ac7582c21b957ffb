"""Chooses the number of prompt tokens in a step, so that decoding sequences do not wait long for it."""

from __future__ import annotations

MIN_CHUNK = 32

STALL_S = 0.25
"""Target duration of a step in seconds, because decoding sequences wait for their next token until the step ends."""

ALONE = 6
"""How many times as long a step may take if no sequence decodes: only new requests wait for it then, and longer steps
read prompts faster."""

PAGED_STALL_S = 10.0
"""The same if experts are read from disk: a step of few prompt tokens reads nearly as many experts as one of many, so
that small steps would make prompts many times slower."""


class ChunkSizer:
    """Adapts the number of prompt tokens in a step, at most ``max_chunk``, so that the step takes about ``seconds``."""

    def __init__(self, max_chunk: int, seconds: float) -> None:
        self.max_chunk = max_chunk
        self._seconds = seconds
        self._chunk = float(max_chunk)

    def chunk(self, decoding: bool) -> int:
        """Maximum number of prompt tokens in the next step, which sequences wait for that are ``decoding`` or not."""
        return int(self._chunk) if decoding else min(int(self._chunk * ALONE), self.max_chunk)

    def record(self, num_tokens: int, seconds: float) -> None:
        """Adapts the chunk to a step that computed ``num_tokens`` tokens in ``seconds``; ignores small steps."""
        if num_tokens >= min(MIN_CHUNK, self.max_chunk):
            target = num_tokens * self._seconds / max(seconds, 1e-6)
            low, high = max(self._chunk / 2, MIN_CHUNK), self._chunk * 2
            self._chunk = min(max(target, low), high, self.max_chunk)
