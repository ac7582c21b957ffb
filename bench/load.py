"""Load test: 64 streams for minutes, some of which disconnect; checks that the server stays alive, fast and fair.

Two users keep the default model busy, one with three times as many streams as the other. A tenth of the requests
disconnect after some events, another tenth before the first. Meanwhile /health is polled ten times a second. Prints the
results as JSON and fails if a guarantee of docs/reliability.md does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

STREAMS = {"ann": 48, "bob": 16}
LEAVES = 0.1
"""Share of the requests that disconnect in the middle; as many disconnect before the first event."""
CACHE_TOKENS = 32768
"""A small cache: it is full within a minute, so that memory that still grows is a leak."""
WORDS = ("river", "stone", "light", "green", "music", "paper", "window", "garden", "train", "yellow", "silver")


class Load:
    """The clients' requests and their observations."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self.model = model
        self.outcomes: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.errors: list[str] = []
        self.health_s: list[float] = []
        self.memory: list[int] = []

    async def run(self, seconds: float, pid: int) -> None:
        """Runs all streams for ``seconds``."""
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits) as http:
            users = [user for user, count in STREAMS.items() for _ in range(count)]
            streams = [self.stream(http, user, random.Random(seed), end) for seed, user in enumerate(users)]
            await asyncio.gather(self.watch(http, pid, end), *streams)

    async def watch(self, http: httpx.AsyncClient, pid: int, end: float) -> None:
        """Polls /health and records the server's memory."""
        while time.monotonic() < end:
            begun = time.perf_counter()
            (await http.get("/health")).raise_for_status()
            self.health_s.append(time.perf_counter() - begun)
            self.memory.append(resident_bytes(pid))
            await asyncio.sleep(0.1)

    async def stream(self, http: httpx.AsyncClient, user: str, rng: random.Random, end: float) -> None:
        """Sends one request after another."""
        while time.monotonic() < end:
            try:
                self.outcomes[await self.ask(http, user, rng, end)] += 1
            except Exception as error:
                self.errors.append(repr(error))

    async def ask(self, http: httpx.AsyncClient, user: str, rng: random.Random, end: float) -> str:
        """Sends one request and returns how it ended."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(5, 400)))}],
            "max_tokens": rng.randint(16, 160),
            "seed": rng.randint(0, 9),
            "user": user,
            "ignore_eos": True,
            "stream": True,
        }
        fate = rng.random()
        if fate < LEAVES:
            with contextlib.suppress(httpx.ReadTimeout):
                await http.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(600, read=rng.random() * 2))
            return "cancelled"
        leaves_after = rng.randint(1, body["max_tokens"]) if fate < 2 * LEAVES else 10**9
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for event in events(answer):
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                if time.monotonic() < end:
                    self.tokens[user] += 1
                if (leaves_after := leaves_after - 1) <= 0:
                    return "disconnected"
        return "finished"


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yields the events of a stream."""
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def resident_bytes(pid: int) -> int:
    """Returns the anonymous memory of a process in bytes, without mapped files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


@contextlib.contextmanager
def server(arguments: list[str], program: tuple[str, ...] = ("-m", "freedive")) -> Iterator[tuple[str, int]]:
    """Starts a server with ``program``; yields its address and process id."""
    command = [sys.executable, *program, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        found = None
        while not found:
            line = process.stderr.readline()
            assert line, "the server did not start"
            found = re.search(r"http://[\d.:]+", line)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would block the server
        try:
            yield found[0], process.pid
        finally:
            process.terminate()
            process.wait(60)


def idle_pages(url: str) -> tuple[int, int]:
    """Returns the numbers of free pages and of all pages once no request is running."""
    for _ in range(100):
        (stats,) = httpx.get(f"{url}/health").json()["models"].values()
        if stats["running"] + stats["waiting"] == 0:
            break
        time.sleep(0.1)
    return stats["free_pages"], stats["num_pages"]


def report(load: Load, pages: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Returns the observations as figures for JSON."""
    half = len(load.memory) // 2
    rest = load.memory[half:]
    return {
        "seconds": seconds,
        "streams": STREAMS,
        "requests": dict(load.outcomes),
        "errors": load.errors[:10],
        "num_errors": len(load.errors),
        "tokens": dict(load.tokens),
        "tokens_per_s": sum(load.tokens.values()) / seconds,
        "fairness": max(load.tokens.values()) / max(min(load.tokens.values()), 1) - 1,
        "health_p50_ms": 1000 * statistics.median(load.health_s),
        "health_p99_ms": 1000 * statistics.quantiles(load.health_s, n=100)[98],
        "health_max_ms": 1000 * max(load.health_s),
        "free_pages": pages[0],
        "num_pages": pages[1],
        "memory_at_half_mb": statistics.median(rest[: len(rest) // 5]) / 1e6,
        "memory_at_end_mb": statistics.median(rest[-(len(rest) // 5) :]) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with server([options.model, "--cache-tokens", str(CACHE_TOKENS)]) as (url, pid):
        load = Load(url, options.model)
        asyncio.run(load.run(options.seconds, pid))
        seen = report(load, idle_pages(url), options.seconds)
    print(json.dumps(seen, indent=2))
    if options.json:
        options.json.write_text(json.dumps(seen, indent=2) + "\n")
    promises = {
        "no error": not seen["num_errors"],
        "pages return": seen["free_pages"] == seen["num_pages"],
        "memory is flat": seen["memory_at_end_mb"] < 1.05 * seen["memory_at_half_mb"] + 20,
        "/health within 100 ms": seen["health_p99_ms"] < 100,
        "users within 20 %": seen["fairness"] < 0.2,
    }
    if broken := [name for name, held in promises.items() if not held]:
        sys.exit(f"does not hold: {', '.join(broken)}")


if __name__ == "__main__":
    main()
