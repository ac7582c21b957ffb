"""Normalises request paths and methods."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from freedive.server.http_errors import EncodedBody

_SLASHES = re.compile(r"/{2,}")


class Paths:
    """Middleware that removes superfluous slashes from paths, and answers HEAD like GET.

    uvicorn omits the body of a response to HEAD.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _SLASHES.sub("/", scope["path"])
            path = path.rstrip("/") or "/"
            scope = {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        await self.app(scope, receive, send)


def check_encoding(headers: Headers) -> None:
    """Raises EncodedBody for a compressed body, because its size is not known before it is decompressed."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise EncodedBody(f"The body is encoded as {encoding[:40]!r}", "Send it without Content-Encoding")
