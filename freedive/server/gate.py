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
from freedive.server.paths import check_encoding
from freedive.server.problems import Problem, error_response
from freedive.server.visit import CLIENT_LEFT, Observer, Visit, route_pattern
from freedive.server.wire import report_ignored_to

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
        report_ignored_to(visit.ignored)

        async def tagged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                ignored = {"X-Freedive-Ignored": ", ".join(sorted(visit.ignored))} if visit.ignored else {}
                MutableHeaders(scope=message).update(
                    SECURITY_HEADERS | {"X-Request-Id": visit.id, "Request-Id": visit.id} | ignored
                )
            await send(message)

        try:
            key = self.guard.admit(scope["path"], headers)
            visit.key, visit.caller = key, key.name
            with self.guard.asking(key, scope["method"]):
                check_encoding(headers)
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
