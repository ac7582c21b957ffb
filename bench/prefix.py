"""The time to the first token of a conversation's second turn, beside llama.cpp's server.

The first turn is a prompt of N random tokens and an answer. The second turn repeats the prompt, has another answer in
its place (chat templates leave the thoughts out of earlier answers) and a new question. Three first tokens are timed:
that of the first turn, which is computed; that of the second turn from the same server; and that of the second turn
from a server that was started again after the first. Both servers get the same requests over HTTP, one after another.

Usage: python bench/prefix.py [--model MODEL] [--tokens 2000,8000,32000] [--llama-server PATH]
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer
from random_models import random_model
from shapes import SHAPES

from freedive import machine
from freedive.hub.sources import resolve

ANSWER, QUESTION = 32, 64
"""Tokens of the answer of a turn, and of what a user adds in the second turn."""

TIMES = ("computed", "second turn", "after a restart")

WRITTEN_S = 3.0
"""Seconds from an answer to the end of its server, in which it may write what it keeps on the disk."""

START_S = 300.0
"""Most seconds until a server answers."""


@dataclass
class Server:
    """A server to start: ``command`` with ``{port}`` for its port; and the seconds it took, by kind and prompt.

    ``model`` is the name of the model in requests.
    """

    name: str
    model: str
    command: Sequence[str]
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def running(self, folder: str) -> Iterator[httpx.Client]:
        """Starts the server, with its stored pages in ``folder``; yields a client, and ends the server."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [part.format(port=port) for part in self.command]
        environment = os.environ | {"FREEDIVE_PAGES": folder}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=3600) as client:
                self._wait(client, process)
                yield client
        finally:
            process.terminate()
            process.wait(60)

    def measure(self, num_tokens: int, vocab_size: int, seed: int) -> None:
        """Times the first tokens of both turns of a conversation that begins with a prompt of ``num_tokens``."""
        source = random.Random(seed)
        prompt, history, question = (
            source.choices(range(vocab_size), k=count) for count in (num_tokens, ANSWER, QUESTION)
        )
        second = [*prompt, *history, *question]
        with TemporaryDirectory() as folder, self.running(folder) as client:
            self._time("computed", num_tokens, client, prompt)
            self._ask(client, prompt, ANSWER)
            self._time("second turn", num_tokens, client, second)
        with TemporaryDirectory() as folder:
            with self.running(folder) as client:
                self._ask(client, prompt, ANSWER)
                time.sleep(WRITTEN_S)
            with self.running(folder) as client:
                self._time("after a restart", num_tokens, client, second)

    def _time(self, kind: str, num_tokens: int, client: httpx.Client, prompt: list[int]) -> None:
        start = time.perf_counter()
        self._ask(client, prompt, 1)
        self.seconds.setdefault((kind, num_tokens), []).append(time.perf_counter() - start)

    def _ask(self, client: httpx.Client, prompt: list[int], max_tokens: int) -> None:
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        client.post("/v1/completions", json=body).raise_for_status()

    def _wait(self, client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
        """Returns when the server answers a short prompt. Raises RuntimeError if it ends or takes too long."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/health").is_success:
                    self._ask(client, [5, 6, 7, 8], 2)
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{process.args!r} does not answer")


def _servers(path: Path, llama_server: str, max_context: int, threads: int) -> list[Server]:
    ours = [sys.executable, "-m", "freedive", "serve", str(path), "--port", "{port}", "--threads", str(threads)]
    servers = [Server("freedive", path.name, [*ours, "--cache-tokens", str(2 * max_context)])]
    if llama_server:
        theirs = [llama_server, "-m", str(path), "--port", "{port}", "-t", str(threads), "-c", str(max_context)]
        servers.append(Server("llama.cpp", path.name, [*theirs, "-np", "1", "-fa", "on"]))
    return servers


def main(
    model: Annotated[str, typer.Option(help=f"Of {', '.join(SHAPES)}, as Q4_0; or a GGUF model.")] = "qwen3.6",
    tokens: Annotated[str, typer.Option(help="Tokens of the first prompt.")] = "2000,8000,32000",
    llama_server: Annotated[str, typer.Option(help="The program llama-server to compare with.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    vocab_size: Annotated[int, typer.Option(help="Tokens of prompts are below this.")] = 30000,
) -> None:
    """Print the seconds to the first token of the second turn of a conversation."""
    path = random_model(model, "Q4_0") if model in SHAPES else resolve(model)
    lengths = [int(length) for length in tokens.split(",")]
    threads = machine.physical_cores()
    servers = _servers(path, llama_server, max(lengths) + 1024, threads)
    for seed in range(rounds):
        for length in lengths:
            for server in servers:
                server.measure(length, vocab_size, seed)
                print(server.name, length, {kind: server.seconds[kind, length][-1] for kind in TIMES}, file=sys.stderr)
    print(f"Seconds to the first token, median (least-most) of {rounds}: {path.name}, {machine.cpu_name()}\n")
    print("| tokens before | " + " | ".join(f"{each.name}, {kind}" for each in servers for kind in TIMES) + " |")
    print("|---" * (1 + len(servers) * len(TIMES)) + "|")
    for length in lengths:
        cells = [_cell(each.seconds[kind, length]) for each in servers for kind in TIMES]
        print(f"| {length:,} | " + " | ".join(cells) + " |")
    print(json.dumps({each.name: {f"{kind} {n}": s for (kind, n), s in each.seconds.items()} for each in servers}))


def _cell(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


if __name__ == "__main__":
    typer.run(main)
