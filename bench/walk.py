"""Finds the bodies that delay other requests the longest, over all routes and fields of the OpenAPI description.

Every field of every route, at any depth, gets long, deep, repetitive and broken values. Meanwhile /health is polled
every 10 ms on another connection, and a small chat streams on a third. Prints the slowest (route, field, value) and how
long /health and the stream waited; fails on any status 500, and if the server does not stay alive.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

Json = Any
Path = tuple[str | int, ...]

PLACE = "value-of-the-walk"
"""A placeholder in a body for the value that is sent."""
MAX_FIELD_DEPTH = 6
JSON_TYPE = {"Content-Type": "application/json"}
MESSAGES = [{"role": "user", "content": "hi"}]
WORKING: Mapping[str, Json] = {
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/api/chat": {"messages": MESSAGES, "stream": False, "options": {"num_predict": 4}},
    "/api/generate": {"prompt": "hi", "stream": False, "options": {"num_predict": 4}},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/completions": {"prompt": "hi", "max_tokens": 4},
    "/v1/embeddings": {"input": "hi"},
    "/api/embed": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}
"""Valid bodies, to which the tested field is added."""


def _repeated(part: bytes) -> Callable[[int], bytes]:
    return lambda size: b"[" + (part + b",") * (size // (len(part) + 1)) + part + b"]"


def _text(part: bytes) -> Callable[[int], bytes]:
    return lambda size: b'"' + part * (size // len(part)) + b'"'


VALUES: Mapping[str, Callable[[int], bytes]] = {
    **{f"text of {part!r}": _text(part.encode()) for part in ("a", " ", "word ", "9", "[", "{", "é", "😀", "<", "1h")},
    "text of quotes": _text(b'\\"'),
    "text of backslashes": _text(b"\\\\"),
    "text of newlines": _text(b"\\n"),
    "text of NULs": _text(b"\\u0000"),
    "text of half surrogates": _text(b"\\ud800"),
    "text without end": lambda size: b'"' + b'\\"' * (size // 2),
    "quotes in brackets": lambda size: b"[" * 101 + b'"' + b'\\"' * (size // 2),
    "deep lists": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "deep objects": lambda size: b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6),
    "a large integer": lambda size: b"1" * size,
    "an integer of 4,000 digits": lambda size: b"1" * 4000,
    "a long fraction": lambda size: b"0." + b"1" * size,
    "integers": _repeated(b"5"),
    "fractions": _repeated(b"1.5"),
    "texts": _repeated(b'"ab"'),
    "empty lists": _repeated(b"[]"),
    "empty objects": _repeated(b"{}"),
    "messages": _repeated(b'{"role":"user","content":"hi"}'),
    "lists of integers": _repeated(b"[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"),
    "an object": lambda size: b"{" + b",".join(b'"%d":1' % i for i in range(size // 10)) + b"}",
    "spaces": lambda size: b" " * size + b"1",
    "NaN": lambda size: b"NaN",
}
"""The functions that make a value of about the given number of bytes, by name."""


def fields(description: Json, schema: Json, depth: int = 0) -> Iterator[tuple[Path, Json]]:
    """Yields the path of each field below ``schema``, and its body with PLACE as its value."""
    schema = _resolved(description, schema)
    for option in [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]:
        yield from fields(description, option, depth)
    if depth >= MAX_FIELD_DEPTH:
        return
    for name, node in schema.get("properties", {}).items():
        beside = {
            key: _example(description, schema["properties"][key]) for key in schema.get("required", ()) if key != name
        }
        yield (name,), beside | {name: PLACE}
        yield from (((name, *path), beside | {name: body}) for path, body in fields(description, node, depth + 1))
    if isinstance(schema.get("items"), dict):
        yield (0,), [PLACE]
        yield from (((0, *path), [body]) for path, body in fields(description, schema["items"], depth + 1))
    if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"].get("type") != "null":
        yield ("1",), {"1": PLACE}


def _resolved(description: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _example(description: Json, schema: Json) -> Json:
    """Returns a small value that roughly fits ``schema``."""
    schema = _resolved(description, schema)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return _example(description, schema[name][0])
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    properties = schema.get("properties", {})
    simple = {"string": "hi", "integer": 1, "number": 1, "boolean": True, "array": []}
    made = {key: _example(description, properties[key]) for key in schema.get("required", ()) if key in properties}
    return simple.get(schema.get("type", "object"), made)


def bodies(description: Json, model: str) -> Iterator[tuple[str, str, bytes]]:
    """Yields (route, field, body) for each field of each route that takes a body, with PLACE as the value."""
    for path, methods in description["paths"].items():
        if path == "/api/pull" or "post" not in methods:
            continue
        route = re.sub(r"\{.*?\}", "none", path)
        content = methods["post"].get("requestBody", {}).get("content", {}).get("application/json")
        yield route, "", json.dumps(PLACE).encode()
        found = dict(fields(description, content["schema"])) if content else {}
        for place, body in found.items():
            first = {place[0]: body[place[0]]}
            whole = body | {"model": model} | WORKING.get(path, {}) | first
            yield route, ".".join(map(str, place)), json.dumps(whole).encode()


@dataclass
class Watch:
    """Measures how long /health and the events of a stream wait, in seconds, as a client sees it."""

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    health_s: float = 0.0
    stream_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        threads = [threading.Thread(target=each, daemon=True) for each in (self._ask_health, self._stream)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(10)

    def reset(self) -> None:
        self.health_s = self.stream_s = 0.0

    def _ask_health(self) -> None:
        connection = connect(self.url)
        while not self._ended.wait(0.01):
            begun = time.perf_counter()
            try:
                connection.request("GET", "/health")
                status = connection.getresponse()
                status.read()
            except OSError as error:
                self.failures.append(f"/health: {error!r}")
                connection.close()
                connection = connect(self.url)
                continue
            self.health_s = max(self.health_s, time.perf_counter() - begun)
        connection.close()

    def _stream(self) -> None:
        body = json.dumps(
            {"model": self.model, "prompt": "Once upon a time", "max_tokens": 64, "stream": True, "ignore_eos": True}
        )
        while not self._ended.is_set():
            connection = connect(self.url)
            try:
                connection.request("POST", "/v1/completions", body, JSON_TYPE | dict(self.headers))
                answer = connection.getresponse()
                last = time.perf_counter()
                while answer.readline():
                    now = time.perf_counter()
                    self.stream_s, last = max(self.stream_s, now - last), now
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"the stream: {error!r}")
            connection.close()


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)


def send(url: str, route: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Sends a body; returns the status of the answer, of which at most 64 MB are read."""
    connection = connect(url)
    try:
        connection.request("POST", route, body, JSON_TYPE | dict(headers))
        answer = connection.getresponse()
        answer.read(64 << 20)
        return answer.status
    except (BrokenPipeError, ConnectionResetError):
        return 0  # refused before the whole body was sent
    finally:
        connection.close()


@dataclass(frozen=True)
class Visit:
    """The effect of one body."""

    health_ms: int
    stream_ms: int
    route: str
    field: str
    value: str
    status: int
    took_s: float


def walk(
    url: str,
    model: str,
    size: int,
    *,
    key: str = "",
    every: int = 1,
    only: str = "",
    seconds: float = 1e9,
    seed: int = 0,
) -> tuple[list[Visit], list[str]]:
    """Sends every ``every``-th body, in random order, for at most ``seconds``.

    Returns the visits, slowest first, and the failures.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connection = connect(url)
    connection.request("GET", "/openapi.json")
    description = json.loads(connection.getresponse().read())
    connection.close()
    plan = [(*body, value) for body in bodies(description, model) if only in body[0] for value in VALUES]
    random.Random(seed).shuffle(plan)  # each n-th body should not be the same few values
    visits, begun = [], time.monotonic()
    with Watch(url, model, headers).watching() as watch:
        time.sleep(0.3)
        for route, name, body, value in plan[::every]:
            if time.monotonic() - begun > seconds:
                break
            data = body.replace(json.dumps(PLACE).encode(), VALUES[value](size))
            watch.reset()
            sent = time.perf_counter()
            status = send(url, route, data, headers)
            time.sleep(0.02)
            took = time.perf_counter() - sent
            visits.append(
                Visit(round(1e3 * watch.health_s), round(1e3 * watch.stream_s), route, name, value, status, took)
            )
            if status >= 500:
                watch.failures.append(f"{route} {name} {value}: {status}")
    return sorted(visits, key=lambda visit: -visit.health_ms), watch.failures


@contextmanager
def server(command: list[str], environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Starts a server in a process of its own; yields its address."""
    with subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            said = ""
            while not (found := re.search(r"http://[\d.:]+", said)):
                line = process.stderr.readline()
                if not line:
                    raise RuntimeError(f"the server did not start: {said}")
                said += line
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield found[0]
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--size", type=float, default=30.0, help="MB of each value")
    parser.add_argument("--every", type=int, default=1, help="send only each n-th body")
    parser.add_argument("--only", default="", help="part of the routes' names")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0, help="of the bodies' order")
    parser.add_argument("--locked", action="store_true", help="send a key, to a server that asks for one")
    options = parser.parse_args()
    freedive = [sys.executable, "-m", "freedive"]
    command = [*freedive, "serve", options.model, "--port", "0", "--max-queue", "4096"]
    with ExitStack() as stack:
        environment, key = dict(os.environ), ""
        if options.locked:
            environment["FREEDIVE_HOME"] = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
            created = [*freedive, "keys", "create", "walker", "--may", "pull,manage"]
            key = subprocess.run(created, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        url = stack.enter_context(server(command, environment))
        visits, failures = walk(
            url,
            options.model,
            int(options.size * 1e6),
            key=key,
            every=options.every,
            only=options.only,
            seconds=options.seconds,
            seed=options.seed,
        )
    for visit in visits[:20]:
        print(
            f"{visit.health_ms:6} ms health {visit.stream_ms:6} ms stream {visit.took_s:6.2f} s  {visit.status} "
            f"{visit.route} {visit.field}: {visit.value}"
        )
    stream_ms = max(visit.stream_ms for visit in visits)
    print(f"{len(visits)} bodies; load {os.getloadavg()[0]:.1f}; the stream waited {stream_ms} ms at most")
    print("\n".join(failures[:20]))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
