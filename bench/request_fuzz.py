"""Sends mutated bodies to every route of a real server, four at a time, and checks that it stays alive.

    python bench/request_fuzz.py --requests 10000

A body is a valid one, in which one field of the OpenAPI description often has an odd value, with up to two more
changes. No answer may have the status 500; at the end no request may be left and every page must be free.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from typing import Any

from walk import PLACE, bodies, connect, send, server

Json = Any

ODD: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308),
    *(
        "",
        " ",
        "a",
        "none",
        "auto",
        "\0",
        "\ud800",
        "😀" * 9,
        "<think>",
        "</think>",
        "<|im_end|>",
        "{{ x }}",
        "9" * 400,
    ),
    *([], [None], [[]], [1, "a", {}], {}, {"type": "object"}, {"type": "function"}, {"a": {"b": [{}]}}),
    *({"$ref": "#"}, {"const": 2**64}, {"enum": []}, {"type": "text", "text": "hi"}, {"role": "user", "content": "hi"}),
)
"""Values that a field is unlikely to expect."""

EVEN: tuple[Json, ...] = (1, 4, 0.5, True, "hi", ["hi"], "none", "auto", "low", "user", [], {})
"""Values that a field may expect. null always means that a field is absent."""


def places(value: Json) -> Iterator[tuple[Json, Any]]:
    """Yields every (container, key) in ``value``."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def mutated(body: Json, source: random.Random) -> Json:
    """Returns ``body`` with up to two members removed, replaced, duplicated or exchanged."""
    for _ in range(max(source.randrange(-2, 3), 0)):
        found = list(places(body)) if isinstance(body, dict | list) else []
        if not found:
            return body
        (container, key), (other, other_key) = source.choice(found), source.choice(found)
        match source.randrange(4):
            case 0:
                del container[key]
            case 1:
                container[key] = deepcopy(source.choice(ODD))
            case 2 if isinstance(container, list):
                container.append(deepcopy(container[key]))
            case _:
                container[key] = deepcopy(other[other_key])
    return body


def get(url: str, route: str) -> Json:
    with closing(connect(url)) as connection:
        connection.request("GET", route)
        return json.loads(connection.getresponse().read())


def attack(url: str, model: str, number: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Returns the number of answers of each status, and the bodies that got status 500."""
    described = bodies(get(url, "/openapi.json"), model)
    plan = [each for each in described if each[1] != "keep_alive"]  # keep_alive could unload the model
    faults: list[str] = []

    def one(index: int) -> int:
        source = random.Random(f"{seed}/{index}")
        route, name, body = source.choice(plan)
        value = json.dumps(source.choice((None, source.choice(ODD), source.choice(EVEN)))).encode()
        data = json.dumps(mutated(json.loads(body.replace(json.dumps(PLACE).encode(), value)), source)).encode()
        try:
            status = send(url, route, data, {})
        except (OSError, http.client.HTTPException) as error:
            faults.append(f"{route} {name}: {error!r}: {data[:300]!r}")
            return -1
        if status == 500:
            faults.append(f"{route} {name}: {data[:300]!r}")
        return status

    with ThreadPoolExecutor(4) as pool:
        return Counter(pool.map(one, range(number))), faults


def wait_until_idle(url: str, model: str, seconds: float = 30) -> Json:
    """Returns the engine's statistics once no request is left and every page is free. Raises TimeoutError."""
    for _ in range(int(10 * seconds)):
        left = get(url, "/health")["models"][model]
        if not (left["running"] or left["waiting"]) and left["free_pages"] == left["num_pages"]:
            return left
        time.sleep(0.1)
    raise TimeoutError(f"requests or pages are left: {left}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "freedive", "serve", options.model, "--port", "0"]
    with server(command) as url:
        statuses, faults = attack(url, options.model, options.requests, options.seed)
        left = wait_until_idle(url, options.model)
    print(dict(statuses), left)
    print("\n".join(faults[:20]))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
