"""The outermost layer: names each request, lets it in or not, and answers what nobody expected."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freedive.errors import UserError
from freedive.server.body import Bodies
from freedive.server.guard import Guard
from freedive.server.problems import Problem, error_response
from freedive.server.visit import CLIENT_LEFT, Observer, Visit, route_pattern

logger = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """Reports every failure of ours once, and every request that has ended to ``observers``."""

    def __init__(self, app: ASGIApp, guard: Guard, observers: Sequence[Observer], bodies: Bodies) -> None:
        self.app = app
        self.guard = guard
        self.observers = observers
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        visit = Visit.of(scope, headers)
        scope.setdefault("state", {}).update(request_id=visit.id, visit=visit)

        async def tagged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                MutableHeaders(scope=message).update(
                    SECURITY_HEADERS | {"X-Request-Id": visit.id, "Request-Id": visit.id}
                )
            await send(message)

        try:
            key = self.guard.admit(scope["path"], headers)
            scope["state"]["caller"] = visit.caller = key.name if key else ""
            with self.guard.asking(key, scope["method"]):
                self.bodies.check_head(scope["method"], headers)
                MutableHeaders(scope=scope)["content-type"] = "application/json"
                await self.app(scope, receive, tagged_send)
        except ClientDisconnect:
            pass
        except UserError as error:
            await error_response(Problem.of(error), scope["path"])(scope, receive, tagged_send)
        except Exception:
            logger.exception("request %s failed", visit.id)
            if visit.status == CLIENT_LEFT:
                await error_response(Problem.internal(visit.id), scope["path"])(scope, receive, tagged_send)
        finally:
            visit.ended_at = time.perf_counter()
            visit.route = route_pattern(scope)
            for observer in self.observers:
                observer(visit)
