"""Connections and the server's end, where uvicorn leaves gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 60.0
"""How long a client may take to say what it wants."""


class Connection(H11Protocol):
    """A client's connection: cut when the client does not say what it wants, or for ``stall_s`` takes nothing.

    What waits to be taken is bounded: while there is more than asyncio's high-water mark, nothing more is sent.
    """

    def __init__(self, *args: Any, stall_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stall_s = stall_s
        self._idle: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def _expect_request(self) -> None:
        _cancel(self._idle)
        self._idle = self.loop.call_later(HEAD_S, self._cut_if_idle)

    def _cut_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._idle)
        _cancel(self._stalled)
        super().connection_lost(exc)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


class Server(uvicorn.Server):
    """Ends after a signal: answers under way may go on for the signal's time in ``graces``. A second one ends at once.

    Tells ``on_end`` as soon as the first signal comes. The process then goes on, rather than dying by the signal.
    """

    def __init__(self, config: uvicorn.Config, graces: dict[int, float], on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._graces = graces
        self._on_end = on_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        self.config.timeout_graceful_shutdown = self._graces[sig]  # type: ignore[assignment]  # a fraction will do
        self.should_exit = True
        self._on_end()
