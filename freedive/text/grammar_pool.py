"""Worker processes that compile untrusted grammars first, with limits of time and memory."""

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
"""Seconds of processor time that a grammar may take."""

SLOWNESS = 5
"""How many times as long the clock may take: the machine may be busy."""

MAX_WAIT_S = 10.0
"""Seconds that a request waits for a worker."""

NUM_WORKERS = 2
NUM_VOCABULARIES = 4
"""Vocabularies that a worker keeps."""


class TimedOut(Exception):
    """A grammar took too long. That may be due to the load of the machine, and is not to be remembered."""


class GrammarPool:
    """At most ``num_workers`` processes, each started when it is first needed. Safe to use from several threads."""

    def __init__(self, num_workers: int = NUM_WORKERS) -> None:
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers = [_Worker() for _ in range(num_workers)]
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def fault(self, key: str, vocabulary: bytes, grammar: str) -> str:
        """What is wrong with ``grammar`` over the ``vocabulary`` called ``key``; "" if nothing is.

        Raises TimedOut; Overloaded if no worker is free for long; Unavailable if none can be started.
        """
        try:
            worker = self._idle.get(timeout=MAX_WAIT_S)
        except queue.Empty:
            raise Overloaded("Many forms of answers are being prepared", "Try again in a moment") from None
        try:
            return worker.fault(key, vocabulary, grammar)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all workers. They are started again if they are needed."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process, which is started anew when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._known: list[str] = []

    def fault(self, key: str, vocabulary: bytes, grammar: str) -> str:
        channel = self._channel or self._start()
        try:
            channel.settimeout(PATIENCE_S * SLOWNESS)
            if key not in self._known:
                forgotten = self._known[: len(self._known) + 1 - NUM_VOCABULARIES]
                send(channel, json.dumps(["vocabulary", key, forgotten]).encode())
                send(channel, vocabulary)
                self._known = [*self._known[len(forgotten) :], key]
            send(channel, json.dumps(["grammar", key, PATIENCE_S, grammar]).encode())
            answer = receive(channel)
        except TimeoutError:
            self.close()
            raise TimedOut from None
        except OSError:  # it died while it was written to
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
                    start_new_session=True,  # an interrupt from the terminal is for the server
                )
            except OSError as error:
                ours.close()
                raise Unavailable(
                    f"The process that prepares forms of answers cannot be started ({error})",
                    "Try again, or ask without a form",
                ) from None
        self._channel = ours
        return ours

    def _death(self) -> str:
        """What the death of the process says about the grammar. Raises TimedOut if it says nothing lasting."""
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
    """The pool of this process, which all models use."""
    pool = GrammarPool()
    atexit.register(pool.close)
    return pool
