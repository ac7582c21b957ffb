"""Chaos test: injects faults into a real server for ten minutes; checks that requests end and answers are correct.

64 streams send requests; a tenth of them disconnect in the middle of an answer. One in 2,000 calls inside the engine
raises an error, a child process of the server is killed every 20 seconds, and the disk hangs twice for 5 seconds.
Before that, a server without faults answers the same requests; every complete answer is compared with its answers.
Prints the results as JSON and fails if a guarantee of docs/reliability.md does not hold.

`python bench/chaos.py serve ...` is the server with injected faults; `freedive serve` has none of this code.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from load import WORDS, events, idle_pages, resident_bytes, server

LEAVES = 0.1
"""Share of the requests that disconnect in the middle of the answer."""
KILL_S = 20.0
HANG_S = 5.0
CACHE_TOKENS = 32768
FAULTY = {
    "freedive.ops.native": ("NativeRunner.step", "NativeRunner.embed"),
    "freedive.engine.scheduler": ("Scheduler.plan", "Scheduler.remove"),
    "freedive.engine.prefix": ("PrefixCache.restore", "PrefixCache.publish"),
    "freedive.engine.executor": ("next_output",),
    "freedive.engine.page_store": ("PageStore.fetch", "PageStore.write"),
}
"""Functions that fail at random, by module."""
SLOW = {"freedive.engine.page_store": ("PageStore.load", "PageStore._save")}
"""Functions that hang while the disk does."""

Body = dict[str, Any]


# --- the server ---------------------------------------------------------------------------------------------------


def sabotage() -> None:
    """Makes functions of this process fail at random, and its disk hang while the file FREEDIVE_CHAOS_HANG exists."""
    rng, one_in = random.Random(0), int(os.environ["FREEDIVE_CHAOS_ONE_IN"])
    hang = Path(os.environ["FREEDIVE_CHAOS_HANG"])

    def fail() -> None:
        if rng.randrange(one_in) == 0:
            raise rng.choice((RuntimeError, MemoryError, BaseException))("chaos")

    def wait() -> None:
        while hang.exists():
            time.sleep(0.05)

    for places, before in ((FAULTY, fail), (SLOW, wait)):
        for module, names in places.items():
            for name in names:
                _wrap(module, name, before)


def _wrap(module: str, name: str, before: Callable[[], None]) -> None:
    owner: Any = __import__(module, fromlist=["_"])
    *kind, function = name.split(".")
    for part in kind:
        owner = getattr(owner, part)
    original = getattr(owner, function)

    @functools.wraps(original)
    def wrapped(*args: Any, **named: Any) -> Any:
        before()
        return original(*args, **named)

    setattr(owner, function, wrapped)


# --- its clients --------------------------------------------------------------------------------------------------


def bodies(model: str) -> list[tuple[str, Body]]:
    """Returns the requests as (path, body): the same in every run, each with a deterministic answer."""
    rng = random.Random(1)
    beginnings = [" ".join(rng.choices(WORDS, k=50)) for _ in range(4)]
    asked: list[tuple[str, Body]] = []
    for number in range(32):
        text = f"{rng.choice(beginnings)} {' '.join(rng.choices(WORDS, k=rng.randint(5, 20)))}"
        limits = {"model": model, "max_tokens": rng.randint(8, 48), "seed": number, "stream": True}
        messages = [{"role": "user", "content": text}]
        match number % 4:
            case 0:
                schema = {
                    "type": "object",
                    "properties": {f"a{number}": {"type": "integer"}},
                    "required": [f"a{number}"],
                }
                form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
                asked.append(("/v1/chat/completions", {**limits, "messages": messages, "response_format": form}))
            case 1:
                texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(24)]
                asked.append(("/v1/embeddings", {"model": model, "input": texts}))
            case 2:
                asked.append(("/v1/completions", {**limits, "prompt": text, "n": 2}))
            case _:
                asked.append(("/v1/chat/completions", {**limits, "messages": messages}))
    return asked


async def ask(http: httpx.AsyncClient, path: str, body: Body, leaves_after: int) -> str | None:
    """Returns the whole answer, or None if it left in the middle.

    Raises RuntimeError with an error that the server reports.
    """
    if not body.get("stream"):
        answer = await http.post(path, json=body)
        if answer.status_code != 200:
            raise RuntimeError(answer.json()["error"]["message"])
        return json.dumps(answer.json()["data"])
    parts: dict[int, str] = {}
    async with http.stream("POST", path, json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(json.loads(await answer.aread())["error"]["message"])
        finished = 0
        async for event in events(answer):
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            for choice in event["choices"]:
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                parts[choice["index"]] = parts.get(choice["index"], "") + text
                finished += bool(choice["finish_reason"])
            if (leaves_after := leaves_after - 1) <= 0:
                return None
    assert finished == body.get("n", 1), "a stream ended without a word"
    return json.dumps(sorted(parts.items()))


class Chaos:
    """The clients' requests and their observations."""

    def __init__(self, asked: list[tuple[str, Body]], expected: list[str | None], hang: Path) -> None:
        self.asked = asked
        self.expected = expected
        self.hang = hang
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.errors: Counter[str] = Counter()
        self.unclear: list[str] = []
        self.memory: list[int] = []
        self.health: Counter[int] = Counter()

    async def run(self, url: str, pid: int, seconds: float, num_streams: int) -> None:
        """Runs all streams for ``seconds``."""
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
            streams = [self.stream(http, random.Random(seed), end) for seed in range(num_streams)]
            troubles = (self.watch(http, pid, end), self.kill(pid, end), self.stop_disk(seconds))
            await asyncio.gather(*troubles, *streams)

    async def stream(self, http: httpx.AsyncClient, rng: random.Random, end: float) -> None:
        """Sends one request after another."""
        while time.monotonic() < end:
            number = rng.randrange(len(self.asked))
            leaves_after = rng.randint(1, 20) if rng.random() < LEAVES else 10**9
            try:
                said = await ask(http, *self.asked[number], leaves_after)
            except RuntimeError as error:
                self.outcomes["errors"] += 1
                self.errors[str(error)] += 1
            except Exception as error:
                self.unclear.append(repr(error))
            else:
                self.outcomes["left" if said is None else "answered"] += 1
                if said is not None and said != self.expected[number]:
                    self.wrong.append(f"{number}: {said[:200]} is not {str(self.expected[number])[:200]}")

    async def watch(self, http: httpx.AsyncClient, pid: int, end: float) -> None:
        """Polls /health and records the server's memory."""
        while time.monotonic() < end:
            self.health[(await http.get("/health")).status_code] += 1
            self.memory.append(resident_bytes(pid))
            await asyncio.sleep(0.2)

    async def kill(self, pid: int, end: float) -> None:
        """Kills a random child process of the server at intervals."""
        while time.monotonic() < end:
            await asyncio.sleep(min(KILL_S, max(end - time.monotonic(), 0) / 2 + 0.1))
            for child in children(pid)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                    self.outcomes["killed children"] += 1

    async def stop_disk(self, seconds: float) -> None:
        """Makes the disk hang twice."""
        for _ in range(2):
            await asyncio.sleep(seconds / 4)
            self.hang.touch()
            await asyncio.sleep(min(HANG_S, seconds / 8))
            self.hang.unlink()


def children(pid: int) -> list[int]:
    """Returns the child processes of ``pid``."""
    with contextlib.suppress(OSError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


async def in_peace(url: str, asked: list[tuple[str, Body]]) -> list[str | None]:
    """Returns the answers of a server without faults, which gets one request at a time."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        return [await ask(http, path, body, 10**9) for path, body in asked]


def report(seen: Chaos, pages: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Returns the observations as figures for JSON."""
    rest = seen.memory[len(seen.memory) // 2 :]
    fifth = max(len(rest) // 5, 1)
    return {
        "seconds": seconds,
        "outcomes": dict(seen.outcomes),
        "errors": dict(seen.errors.most_common(10)),
        "wrong_answers": seen.wrong[:5],
        "unclear_ends": seen.unclear[:10],
        "health": dict(seen.health),
        "free_pages": pages[0],
        "num_pages": pages[1],
        "memory_at_half_mb": statistics.median(rest[:fifth]) / 1e6,
        "memory_at_end_mb": statistics.median(rest[-fifth:]) / 1e6,
    }


def run(model: str, seconds: float, num_streams: int, one_in: int, folder: Path) -> dict[str, Any]:
    """Runs the server without and with faults; returns the report of the second run."""
    hang = folder / "hang"
    os.environ |= {"FREEDIVE_CHAOS_ONE_IN": str(one_in), "FREEDIVE_CHAOS_HANG": str(hang)}
    os.environ["FREEDIVE_PAGES"] = str(folder / "pages")
    asked = bodies(model)
    with server([model, "--disk-cache-gb", "0", "--prefix-cache", "off"]) as (url, _):
        expected = asyncio.run(in_peace(url, asked))
    arguments = [model, "--cache-tokens", str(CACHE_TOKENS)]
    with server(arguments, (__file__,)) as (url, pid):
        seen = Chaos(asked, expected, hang)
        asyncio.run(seen.run(url, pid, seconds, num_streams))
        return report(seen, idle_pages(url), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--one-in", type=int, default=2000, help="one call in so many fails")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        seen = run(options.model, options.seconds, options.streams, options.one_in, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(seen, indent=2))
    if options.json:
        options.json.write_text(json.dumps(seen, indent=2) + "\n")
    promises = {
        "every request ends with an answer or a clear error": not seen["unclear_ends"],
        "answers are those of a quiet run": seen["outcomes"].get("answered") and not seen["wrong_answers"],
        "pages return": seen["free_pages"] == seen["num_pages"],
        "memory is flat": seen["memory_at_end_mb"] < 1.05 * seen["memory_at_half_mb"] + 20,
    }
    if broken := [name for name, held in promises.items() if not held]:
        sys.exit(f"does not hold: {', '.join(broken)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        from freedive.cli import main as freedive

        sabotage()
        freedive()
    else:
        main()
