"""The outermost layer: names each request, lets it in or not, reads its body, and survives what nobody expected."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freedive.errors import UserError
from freedive.server.guard import Guard
from freedive.server.paths import check_encoding
from freedive.server.problems import Problem, error_response
from freedive.server.visit import CLIENT_LEFT, Observer, Visit, route_pattern
from freedive.server.wire import report_ignored_to

logger = logging.getLogger(__name__)

BODY_S = 60.0
"""How long a client may take to send a body."""
MAX_DEPTH = 100
"""How deep lists and objects of a body may be nested."""
MAX_MARKS = 1 << 21
"""How many brackets it may have, and how many quotes: reading takes longest where there is little else."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class BodyTooLarge(UserError):
    """A request body beyond the limit."""

    status = 413


class UnsupportedMediaType(UserError):
    """A request body that is not JSON."""

    status = 415


class BodyTooSlow(UserError):
    """A request body that does not come."""

    status = 408


class Gate:
    """Reports every failure of ours once, and every request that has ended to ``observers``."""

    def __init__(self, app: ASGIApp, guard: Guard, observers: Sequence[Observer], max_body_bytes: int) -> None:
        self.app = app
        self.guard = guard
        self.observers = observers
        self.max_body_bytes = max_body_bytes

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
                if scope["method"] == "POST" or _has_body(headers):
                    check_encoding(headers)
                    receive = await with_body(headers, receive, self.max_body_bytes)
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


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


async def with_body(headers: Headers, receive: Receive, max_bytes: int) -> Receive:
    """Read the whole body, then hand out that and whatever follows it.

    A browser asks before it sends JSON abroad, and always says where it comes from; from others, as from curl -d, what
    does not call itself JSON is taken for it.
    """
    is_json = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    if not is_json and "origin" in headers:
        raise UnsupportedMediaType("the body must be JSON", "Send the header Content-Type: application/json")
    try:
        async with asyncio.timeout(BODY_S):
            body = await _read(headers, receive, max_bytes)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come within {BODY_S:g} s", "Send it faster") from None
    check_text(body)
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


async def _read(headers: Headers, receive: Receive, max_bytes: int) -> bytes:
    too_large = BodyTooLarge(f"the body is larger than {max_bytes / (1 << 20):g} MiB", "Send less at once")
    length = headers.get("content-length", "0")
    if len(length) > 12 or int(length) > max_bytes:
        raise too_large
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
AS_LISTS = bytes.maketrans(b"{}", b"[]")


def check_text(body: bytes) -> None:
    """Raises UserError for what is not UTF-8, and for JSON that would take long to parse, or more stack than there is.

    Whether it is JSON at all is not asked here.
    """
    try:
        if "\0" in body.decode():
            raise UserError("the body has a NUL character", "Send JSON in UTF-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the body is not UTF-8 at byte {error.start}", "Send JSON in UTF-8") from None
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    if body.count(b'"') > MAX_MARKS:
        raise UserError(f"the body has more than {MAX_MARKS // 2} strings", "Send less at once")
    brackets = STRINGS.sub(b"", body).translate(AS_LISTS, ALL_BUT_BRACKETS)
    if len(brackets) > MAX_MARKS:
        raise UserError(f"the body has more than {MAX_MARKS // 2} lists and objects", "Send less at once")
    for _ in range(MAX_DEPTH):  # each time, the innermost go
        brackets = brackets.replace(b"[]", b"")
    if brackets.strip(b"]"):
        raise UserError(f"the body is nested more than {MAX_DEPTH} deep, or not whole", "Send flatter JSON")
