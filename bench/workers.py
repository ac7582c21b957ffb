"""Engines in processes of their own: long-lived, and idle unless called."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from freedive.errors import UserError

FOLDER = Path(__file__).parent
PEERS = FOLDER.parent / ".venv" / "peers" / "bin" / "python"
"""The Python that `make bench` gives llama-cpp-python."""


class Worker:
    """A process that does :mod:`jobs`. Use it in a ``with`` block."""

    def __init__(self, *command: object) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(self, job: str, **arguments: Any) -> Any:
        """What the worker's method ``job`` returns."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # said below
            print(json.dumps([job, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise UserError(f"The worker {self._process.args!r} has ended", "See its message above")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input is the end of its work


def start_freedive(model: Path, threads: int) -> Worker:
    """freedive, in this Python."""
    return Worker(sys.executable, FOLDER / "freedive_jobs.py", model, threads)


def start_llama(model: Path, threads: int, python: Path) -> Worker:
    """llama.cpp, in the Python that has it."""
    return Worker(python, FOLDER / "llama_jobs.py", model, threads)


def peer_python(given: Path | None) -> Path:
    """The Python with llama-cpp-python: as given, else the one of `make bench`, else this one. UserError without it."""
    python = given or (PEERS if PEERS.exists() else Path(sys.executable))
    if not python.exists() or subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
        raise UserError(f"{python} has no llama-cpp-python", "Run `make bench`, or name another with --peer-python")
    return python
