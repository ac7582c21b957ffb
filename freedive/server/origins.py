"""Cross-origin requests (CORS): which origins may use the server, and the headers that browsers need."""

from __future__ import annotations

from collections.abc import Set

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freedive.errors import Forbidden
from freedive.server.api_errors import ApiError, error_response

METHODS = "GET, HEAD, POST, DELETE"
EXPOSED = "X-Request-Id, Request-Id, Retry-After, X-Freedive-Ignored, X-Freedive-Lossy"
"""Response headers that a page may read, in addition to those that CORS always allows."""
MAX_AGE_S = 600
"""Seconds that a browser may cache the answer to a preflight."""
VARYING = "Origin, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
"""Request headers that the answer to a preflight depends on."""


class ForeignPage(Forbidden):
    """A request of a web page from an origin that is not allowed."""

    def __init__(self, origin: str) -> None:
        super().__init__("Pages of other origins may not use this server", f"Serve with --origins {origin}")


class Origins:
    """The allowed origins, in the spelling of browsers; "*" allows all."""

    def __init__(self, allowed: Set[str]) -> None:
        self._allowed = allowed

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def allow(self, origin: str) -> bool:
        """Whether pages of this origin may use the server."""
        return "*" in self._allowed or origin.lower() in self._allowed


class CrossOrigin:
    """Middleware that answers CORS preflights, and lets pages of allowed origins read responses and errors.

    A preflight needs no key: it only asks which requests the page may send, and these need a key.
    """

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin", "")

        async def readable_send(message: Message) -> None:
            if message["type"] == "http.response.start" and self.origins:
                answer = MutableHeaders(scope=message)
                answer.add_vary_header("Origin")
                if origin and self.origins.allow(origin):
                    answer.update({"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED})
            await send(message)

        if origin and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await self._preflight(origin, headers, scope["path"])(scope, receive, send)
        else:
            await self.app(scope, receive, readable_send)

    def _preflight(self, origin: str, asked: Headers, path: str) -> Response:
        if not self.origins.allow(origin):
            response = error_response(ApiError.of(ForeignPage(origin)), path)
        else:
            response = Response(status_code=204)
            response.headers.update(
                {
                    "Access-Control-Allow-Origin": origin,
                    "Access-Control-Allow-Methods": METHODS,
                    "Access-Control-Max-Age": str(MAX_AGE_S),
                }
            )
            if names := asked.get("access-control-request-headers"):
                response.headers["Access-Control-Allow-Headers"] = names
            if asked.get("access-control-request-private-network") == "true":
                response.headers["Access-Control-Allow-Private-Network"] = "true"
        response.headers["Vary"] = VARYING
        return response
