"""JSON with a long list in it, such as thousands of vectors, written without holding up the event loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response


async def long_json(fields: Mapping[str, Any], name: str, items: Iterable[Any]) -> Response:
    """An object of ``fields``, and of the list ``items`` under ``name``, made in a thread, item by item.

    One item after the other, since the interpreter does nothing else while it writes one value.
    """
    return Response(await run_in_threadpool(_written, fields, name, items), media_type="application/json")


def _written(fields: Mapping[str, Any], name: str, items: Iterable[Any]) -> bytes:
    parts = [json.dumps(item, separators=(",", ":")).encode() for item in items]
    head = json.dumps({**fields, name: []}, separators=(",", ":")).encode()
    return head.removesuffix(b"]}") + b",".join(parts) + b"]}"
