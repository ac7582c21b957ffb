"""The page's requests for answers, as tests make them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
from patience import wait_until

AT = "/app/conversations"


def sent(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(f"{AT}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked(http: httpx.Client, text: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    id = sent(http, "", settings=settings)["id"]
    question = sent(http, f"/{id}/messages", content=text)
    return id, sent(http, f"/{id}/answers", parent=question["id"])


def events(http: httpx.Client, id: str, message: str) -> Iterator[dict[str, Any]]:
    with http.stream("GET", f"{AT}/{id}/answers/{message}/events") as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def read(http: httpx.Client, id: str, message: str) -> dict[str, Any]:
    whole = http.get(f"{AT}/{id}?html=true").json()
    return next(each for each in whole["messages"] if each["id"] == message)


def arrived(reading: Iterator[dict[str, Any]], kind: str = "text") -> str:
    """Reads until there is some text, or some thoughts, and returns the first of it."""
    for each in reading:
        if begun := each.get(kind) or each.get("snapshot", {}).get(kind):
            return str(begun)
    raise AssertionError(f"there is no {kind}")


def ended(http: httpx.Client, id: str, message: str) -> dict[str, Any]:
    wait_until(lambda: read(http, id, message)["status"] != "running")
    return read(http, id, message)
