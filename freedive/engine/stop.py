"""From tokens to the text that may be shown: incremental decoding and stop strings."""

from __future__ import annotations

from typing import Protocol


class Decoder(Protocol):
    """Incremental decoder of one answer: returns only text that no later token can change."""

    def push(self, token_id: int, /) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """Text of one answer, up to the first stop string to be completed (that one excluded).

    Only text that may still turn out to be the beginning of a stop string is held back. :attr:`stop_string` is the one
    that was found.
    """

    def __init__(self, decoder: Decoder, stop: tuple[str, ...]) -> None:
        self.stop_string: str | None = None
        self._decoder = decoder
        self._stop = stop
        self._held = ""

    @property
    def stopped(self) -> bool:
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` makes certain; sets :attr:`stopped` when it completes a stop string."""
        text = self._decoder.push(token_id)
        return self._filter(text) if self._stop else text

    def close(self) -> str:
        """The rest of the text, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._filter(self._decoder.flush())
        return text if self.stopped else text + self._held

    def _filter(self, text: str) -> str:
        text = self._held + text
        # The stop string that ends first wins, so that the outcome does not depend on how text is cut into tokens.
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.stop_string = min(found)
            return text[:start]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop`` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
