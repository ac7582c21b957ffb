"""Engines in processes of their own, which live long and sleep between calls."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from freedive.errors import UserError

FOLDER = Path(__file__).parent
JOBS = FOLDER / "jobs"
"""The scripts of the workers, in a folder of their own so that they hide no module that a peer imports."""

PEERS = FOLDER.parent / ".venv" / "peers"
"""The folder in which `make bench` gives every peer a Python environment."""

LLAMA = "llama"

_FAULT = re.compile(r"^(?:\[\w+\]: )?((?:\w+\.)*\w*(?:Error|Exception)\b.*|.*GGML_ASSERT.*)", re.MULTILINE)


class Worker:
    """A process that runs :mod:`jobs`. Use it in a ``with`` block."""

    def __init__(self, *command: object) -> None:
        self._messages = TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
        )

    @property
    def process(self) -> int:
        """The id of the process."""
        return self._process.pid

    def call(self, job: str, **arguments: Any) -> Any:
        """Returns the result of the worker's method ``job``.

        Raises UserError with the reason if the process has ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # reported below
            print(json.dumps([job, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._messages.seek(0)
            reason = ending(self._process.wait(), self._messages.read())
            raise UserError(reason, f"Run it by hand for more: {self._process.args!r}")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()  # closing its input ends the worker
        self._messages.close()


def ending(status: int, messages: bytes) -> str:
    """Returns in one line why a process has ended: its exception, its signal, or its last output."""
    text = messages.decode(errors="replace")
    if faults := _FAULT.findall(text):
        return str(faults[-1])
    if status == -signal.SIGKILL:
        return "killed, as happens when memory runs out"
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it has ended without a word")
    return f"ended by {signal.Signals(-status).name}: {last}" if status < 0 else last


def start_llama(model: Path, threads: int, python: Path) -> Worker:
    """Starts llama.cpp in the Python environment that has it."""
    return Worker(python, JOBS / "llama_jobs.py", model, threads)


def peer_python(given: Path | None) -> Path:
    """Returns the Python with llama-cpp-python: ``given``, that of `make bench`, or this one.

    Raises UserError without it.
    """
    made = python_of(PEERS, LLAMA)
    python = given or (made if made.exists() else Path(sys.executable))
    if not python.exists() or subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
        raise UserError(f"{python} has no llama-cpp-python", "Run `make bench`, or name another with --peer-python")
    return python


def python_of(peers: Path, name: str) -> Path:
    """Returns the path of the Python of the peer ``name``."""
    return peers / name / "bin" / "python"
