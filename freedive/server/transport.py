"""Timeouts and limits of connections, and a graceful shutdown, which uvicorn lacks."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 60.0
"""Seconds that a client may take to send the headers of its next request."""
LINGER_S = 1.0
"""Seconds in which the rest of an unwanted body is read and dropped, so that the client can read the response."""
MAX_CONNECTIONS = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""Half of the process's file descriptors at most; files and models need the other half."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """A client's connection, closed if the client sends no request, or reads nothing for ``stall_s`` seconds.

    If there are too many connections, the one that was idle for longest is closed; if none is idle, the new one is
    refused. ``resting`` is shared by all connections of a server: those that became idle, in that order.

    Unsent data is bounded: above asyncio's high-water mark, the application waits.
    """

    def __init__(self, *args: Any, stall_s: float, resting: dict[Connection, None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._stall_s = stall_s
        self._resting = resting
        self._idle: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def _make_room(self) -> None:
        """Closes the oldest idle connection, or refuses this one. Examines each entry once: it blocks the loop."""
        while self._resting:
            oldest = next(iter(self._resting))
            del self._resting[oldest]  # a busy connection is added again after its response
            if oldest is not self and oldest.is_idle and not oldest.transport.is_closing():
                oldest.transport.abort()
                return
        self.transport.write(BUSY)
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    @property
    def is_idle(self) -> bool:
        """Whether the connection has no running request."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_request(self) -> None:
        _cancel(self._idle)
        self._resting.pop(self, None)
        self._resting[self] = None
        unread = self.conn.their_state is h11.SEND_BODY
        self._idle = self.loop.call_later(LINGER_S if unread else HEAD_S, self._cut_if_idle)

    def _cut_if_idle(self) -> None:
        if self.is_idle:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        self._resting.pop(self, None)
        _cancel(self._idle)
        _cancel(self._stalled)
        super().connection_lost(exc)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


class Server(uvicorn.Server):
    """A server that ends after a signal; running answers may continue for ``graces[signal]`` seconds.

    A second signal ends the server at once. Calls ``on_end`` at the first signal. :meth:`run` then returns, and does
    not raise the signal again.
    """

    def __init__(self, config: uvicorn.Config, graces: dict[int, float], on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._graces = graces
        self._on_end = on_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        self.config.timeout_graceful_shutdown = self._graces[sig]  # type: ignore[assignment]  # uvicorn accepts a float
        self.should_exit = True
        self._on_end()
