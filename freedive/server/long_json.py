"""JSON with a long list in it, such as thousands of vectors, written without blocking the event loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import Response

from freedive.server.routing import INLINE_BYTES, encode, off_loop


async def long_json(
    fields: Mapping[str, Any], name: str, items: Iterable[Any], size: int = INLINE_BYTES + 1
) -> Response:
    """Returns a JSON response of ``fields`` and the list ``items`` under ``name``, encoded in a thread if it is long.

    ``size`` is the approximate size in bytes. Items are created and encoded one at a time, because one call of the
    encoder, and garbage collection over many objects, hold the interpreter's lock.
    """
    return Response(await off_loop(size, _written, fields, name, items), media_type="application/json")


def _written(fields: Mapping[str, Any], name: str, items: Iterable[Any]) -> bytes:
    parts = [encode(item) for item in items]
    head = json.dumps({**fields, name: []}, separators=(",", ":")).encode()
    return head.removesuffix(b"]}") + b",".join(parts) + b"]}"
