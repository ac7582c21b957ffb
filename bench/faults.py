"""Fault injection: damages what a server depends on, and checks that errors are clear and that it stays alive.

Runs `freedive serve` on the default model with a prefix cache of its own, and counts. Answers are compared with those
of a server without a prefix cache. Root mounts a small disk to fill it; other users skip that check.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from load import server

MODEL = "smollm2"
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "near", "river", "while", "owls", "watch")
PROMPTS = [" ".join(random.Random(seed).choices(WORDS, k=700)) for seed in range(6)]
QUIET = ["--stall-timeout", "2"]


class Server:
    """A server under test; ``folder`` is for its prefix cache."""

    def __init__(self, url: str, pid: int, folder: Path) -> None:
        self.url = url
        self.pid = pid
        self.folder = folder

    def ask(self, prompt: str) -> str:
        """Returns the answer, which should depend on the prompt alone."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0, "user": "checker"}
        response = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120)
        response.raise_for_status()
        return str(response.json()["choices"][0]["text"])

    def refuses(self, body: bytes | Iterator[bytes], statuses: tuple[int, ...] = (400,)) -> None:
        """Checks that ``body`` gets an error in OpenAI's format, and that the server lives on."""
        headers = {"content-type": "application/json"}
        response = httpx.post(f"{self.url}/v1/chat/completions", content=body, headers=headers, timeout=120)
        assert response.status_code in statuses, response.text[:200]
        assert response.json()["error"]["message"]
        self.lives()

    def lives(self) -> None:
        assert httpx.get(f"{self.url}/health", timeout=5).json()["status"] == "ok"

    def is_idle(self) -> bool:
        """Returns whether no request is running and every page is free."""
        stats = httpx.get(f"{self.url}/health", timeout=5).json()["models"][MODEL]
        return bool(stats["running"] + stats["waiting"] == 0 and stats["free_pages"] == stats["num_pages"])


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """Starts a server whose prefix cache is below ``folder``."""
    os.environ["FREEDIVE_PAGES"] = str(folder)
    with server([MODEL, *QUIET, *arguments]) as (url, pid):
        yield Server(url, pid, folder)


def kills(folder: Path, expected: list[str], count: int) -> int:
    """Kills the server (SIGKILL) while it writes pages, ``count`` times; the next server must give the same answers."""
    rng = random.Random(1)
    for _ in range(count):
        with contextlib.suppress(httpx.HTTPError), serving(folder) as one:
            killer = subprocess.Popen(
                [sys.executable, "-c", f"import os, time; time.sleep({rng.random() * 2:.2f}); os.kill({one.pid}, 9)"]
            )
            for prompt in rng.sample(PROMPTS, len(PROMPTS)):
                one.ask(prompt + str(rng.random()))
            killer.wait()
    with serving(folder) as one:
        assert [one.ask(prompt) for prompt in PROMPTS] == expected
    return count


def damages(folder: Path, expected: list[str]) -> int:
    """Damages every stored page: flipped bits, truncated files, foreign content and empty files."""
    rng = random.Random(2)
    files = sorted(folder.rglob("*.page"))
    for file in files:
        data = bytearray(file.read_bytes())
        match rng.randrange(4):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                data = bytearray(rng.randbytes(len(data)))
            case 3:
                data.clear()
        file.write_bytes(data)
    with serving(folder) as one:
        assert [one.ask(prompt) for prompt in PROMPTS] == expected
    return len(files)


def full_disk(folder: Path, expected: list[str]) -> int:
    """Fills a disk that holds only a few pages; returns the number of prompts, each of which needs more."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True).returncode:
        return 0
    try:
        (folder / "filler").write_bytes(bytes(7 << 20))
        with serving(folder) as one:
            assert [one.ask(prompt) for prompt in PROMPTS] == expected
            one.lives()
    finally:
        subprocess.run(["umount", folder], check=True)
    return len(PROMPTS)


def readers_of_nothing(one: Server, expected: list[str], count: int) -> int:
    """Checks that clients that never read a long stream do not delay others, and that their pages are freed."""
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 400, "stream": True, "ignore_eos": True})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            raw = stack.enter_context(socket.socket())
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((httpx.URL(one.url).host, httpx.URL(one.url).port or 80))
            raw.sendall((head + body).encode())
        for prompt, answer in zip(PROMPTS, expected, strict=True):
            assert one.ask(prompt) == answer
        wait_for(one.is_idle, 120)
    return count


def large_bodies(one: Server, count: int) -> int:
    """Sends bodies of 10 MB of several kinds."""
    size = 10_000_000
    kinds = [
        json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "a" * size}]}),
        json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "word " * (size // 5)}]}),
        json.dumps({"model": MODEL, "messages": [{"role": "user"}] * (size // 17)}),
        "[" + "1," * (size // 2) + "1]",
        '"' + "\\n" * (size // 2) + '"',
    ]
    for index in range(count):
        one.refuses(kinds[index % len(kinds)].encode())
    return count


def long_prompts(one: Server, count: int) -> int:
    """Sends prompts of 100,000 tokens to a context of 8,192; each must be refused with OpenAI's error code."""
    for index in range(count):
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"{index} " + "river " * 100_000}]}
        response = httpx.post(f"{one.url}/v1/chat/completions", json=body, timeout=120)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
        one.lives()
    return count


def broken_utf8(one: Server, count: int) -> int:
    rng = random.Random(3)
    good = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "grün 绿 🟢"}]}, ensure_ascii=False
    ).encode()
    for _ in range(count):
        place = rng.randrange(1, len(good))
        one.refuses(good[:place] + bytes([rng.choice([0xC0, 0xFF, 0x80, 0xF8, 0xED])]) + good[place:])
    return count


def nests(one: Server, count: int) -> int:
    """Sends lists and objects nested up to 1,000,000 deep."""
    rng = random.Random(4)
    for _ in range(count):
        depth = int(10 ** rng.uniform(2.1, 6))
        begin, end = rng.choice([("[", "]"), ('{"a":', "}")])
        closed = rng.random() < 0.5
        inner = begin * depth + ("1" + end * depth if closed else "")
        one.refuses(rng.choice([inner, f'{{"model": "{MODEL}", "messages": {inner}}}']).encode())
    return count


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    counts: dict[str, Any] = {}
    try:
        with serving(folder / "none", "--disk-cache-gb", "0", "--prefix-cache", "off") as one:
            expected = [one.ask(prompt) for prompt in PROMPTS]
        counts["kill -9 while pages are written"] = kills(folder / "pages", expected, 20)
        counts["damaged pages"] = damages(folder / "pages", expected)
        counts["prompts on a full disk"] = full_disk(folder / "small", expected)
        with serving(folder / "pages") as one:
            counts["clients that read nothing"] = readers_of_nothing(one, expected, 20)
            counts["bodies of 10 MB"] = large_bodies(one, 20)
            counts["prompts of 100,000 tokens"] = long_prompts(one, 10)
            counts["broken UTF-8"] = broken_utf8(one, 100)
            counts["nested JSON"] = nests(one, 100)
            wait_for(one.is_idle, 60)
            assert [one.ask(prompt) for prompt in PROMPTS] == expected
    finally:
        shutil.rmtree(folder)
    print(json.dumps(counts, indent=2))
    if options.json:
        options.json.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
