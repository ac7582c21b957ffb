"""The outer ASGI middleware: assigns request ids, authenticates, and answers unexpected failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freedive.config import settings_text
from freedive.errors import UserError
from freedive.server.api_errors import ApiError, error_response
from freedive.server.auth import Auth
from freedive.server.body import Bodies, is_framed_twice
from freedive.server.paths import check_encoding
from freedive.server.request_body import report_to
from freedive.server.request_record import CLIENT_LEFT, Observer, RequestRecord, route_pattern

logger = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; manifest-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class EdgeMiddleware:
    """Authenticates each HTTP request, logs each failure once, and reports finished requests to ``observers``."""

    def __init__(self, app: ASGIApp, auth: Auth, observers: Sequence[Observer], bodies: Bodies) -> None:
        self.app = app
        self.auth = auth
        self.observers = observers
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        record = RequestRecord.of(scope, headers)
        scope.setdefault("state", {}).update(request_id=record.id, record=record)
        report_to(record.ignored)

        async def tagged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                ignored = {"X-Freedive-Ignored": ", ".join(sorted(record.ignored))} if record.ignored else {}
                settings = record.completions.model.lossy if record.completions else {}
                lossy = {"X-Freedive-Lossy": settings_text(settings)} if settings else {}
                close = {"Connection": "close"} if is_framed_twice(headers) else {}
                MutableHeaders(scope=message).update(
                    SECURITY_HEADERS | {"X-Request-Id": record.id, "Request-Id": record.id} | ignored | lossy | close
                )
            await send(message)

        try:
            key = self.auth.admit(scope["path"], headers)
            record.key, record.caller = key, key.name
            with self.auth.track(key, scope["path"], scope["method"]):
                check_encoding(headers)
                self.bodies.check_head(scope["method"], headers)
                MutableHeaders(scope=scope)["content-type"] = "application/json"
                await self.app(scope, receive, tagged_send)
        except ClientDisconnect:
            pass
        except UserError as error:
            await error_response(ApiError.of(error), scope["path"])(scope, receive, tagged_send)
        except Exception:
            logger.exception("request %s failed", record.id)
            if record.status == CLIENT_LEFT:
                await error_response(ApiError.internal(record.id), scope["path"])(scope, receive, tagged_send)
        finally:
            record.ended_at = time.perf_counter()
            record.route = route_pattern(scope)
            for observer in self.observers:
                observer(record)
