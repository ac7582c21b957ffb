"""Worker processes that compile untrusted grammars first, with limits on time and memory."""

from __future__ import annotations

import atexit
import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from freedive.errors import Overloaded, Unavailable
from freedive.text import grammar_worker
from freedive.text.grammar_worker import receive, send

PATIENCE_S = 2.0
"""CPU seconds that a grammar may take to compile."""

SLOWNESS = 5
"""The limit of wall-clock time as a multiple of CPU time, for a busy machine."""

MAX_WAIT_S = 10.0
"""Seconds that a request waits for a free worker."""

NUM_WORKERS = 2
NUM_VOCABULARIES = 4
"""The number of vocabularies that a worker caches."""


class TimedOut(Exception):
    """A grammar took too long to compile; the result is not cached, because the machine may have been busy."""


class GrammarPool:
    """At most ``num_workers`` worker processes, each started at its first use. Safe to use from several threads."""

    def __init__(self, num_workers: int = NUM_WORKERS) -> None:
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers = [_Worker() for _ in range(num_workers)]
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def fault(self, key: str, vocabulary: bytes, grammar: str) -> str:
        """Compiles ``grammar`` for the ``vocabulary`` named ``key``, and returns what is wrong, "" if nothing is.

        Raises TimedOut, Overloaded if no worker becomes free, and Unavailable if none can be started.
        """
        try:
            worker = self._idle.get(timeout=MAX_WAIT_S)
        except queue.Empty:
            raise Overloaded("Too many formats of answers are being compiled", "Try again later") from None
        try:
            return worker.fault(key, vocabulary, grammar)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends all workers; a later call of :meth:`fault` starts them again."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """One worker process, which is started again after it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._known: list[str] = []

    def fault(self, key: str, vocabulary: bytes, grammar: str) -> str:
        channel = self._channel or self._start()
        try:
            channel.settimeout(PATIENCE_S * SLOWNESS)
            if key not in self._known:
                evicted = self._known[: len(self._known) + 1 - NUM_VOCABULARIES]
                send(channel, json.dumps(["vocabulary", key, evicted]).encode())
                send(channel, vocabulary)
                self._known = [*self._known[len(evicted) :], key]
            send(channel, json.dumps(["grammar", key, PATIENCE_S, grammar]).encode())
            answer = receive(channel)
        except TimeoutError:
            self.close()
            raise TimedOut from None
        except OSError:  # the worker died while it was receiving
            answer = None
        return self._death() if answer is None else answer.decode(errors="replace")

    def close(self) -> None:
        if self._channel:
            self._channel.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process, self._channel, self._known = None, None, []

    def _start(self) -> socket.socket:
        spec = find_spec("llguidance")
        assert spec
        assert spec.origin
        program = [sys.executable, "-I", "-S", grammar_worker.__file__, str(Path(spec.origin).parent)]
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    program,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C must reach only the server
                )
            except OSError as error:
                ours.close()
                raise Unavailable(
                    f"The process that compiles formats of answers cannot be started ({error})",
                    "Try again, or send the request without a format",
                ) from None
        self._channel = ours
        return ours

    def _death(self) -> str:
        """Returns the fault that ended the process. Raises TimedOut if the time limit or the system ended it."""
        assert self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=PATIENCE_S)
        code = self._process.returncode
        self.close()
        if code in (None, -signal.SIGPROF, -signal.SIGKILL):
            raise TimedOut
        return "it is too deeply nested or too large"


@cache
def shared_pool() -> GrammarPool:
    """Returns the pool of this process, which all models share."""
    pool = GrammarPool()
    atexit.register(pool.close)
    return pool
