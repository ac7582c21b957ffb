"""Request bodies: read only for routes that take one; bounded in bytes, in time and in JSON values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from freedive.errors import Unavailable, UserError
from freedive.server.http_errors import BodyTooLarge, BodyTooSlow, UnsupportedMediaType
from freedive.server.request_body import MAX_DEPTH

BODY_S = 60.0
"""Seconds that a client may take to send a body."""
SHARE = 4
"""The limit for the bytes of all bodies together, as a multiple of the limit for one body."""
MAX_CONTAINERS = 1 << 17
"""The most lists and objects in a body: Python holds the interpreter's lock while it creates them."""
MAX_STRINGS = 1 << 18
"""The most strings in a body, field names included."""
MAX_ESCAPES = 1 << 22
"""The most backslashes in a body (25 MB of \\uXXXX): text of escapes is parsed ten times as slowly as other text."""
MAX_VALUES = 1 << 20
"""The most members of all lists and objects in a body together."""


@dataclass(eq=False)
class _Reading:
    """A body that is being received. ``displaced``: it was dropped to free memory for other bodies."""

    deadline: asyncio.Timeout
    data: bytearray = field(default_factory=bytearray)
    complete: bool = False
    displaced: bool = False


class Bodies:
    """The bodies that are being received or parsed, with a limit on their memory. Belongs to one event loop.

    A body has at most ``max_bytes``, and all bodies together have at most ``SHARE`` times as many. Beyond that, the
    largest incomplete body is dropped, so that many slow clients cannot block other clients.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: set[_Reading] = set()
        self.parsers = CapacityLimiter(2)  # threads; more would only wait for the interpreter's lock

    @property
    def num_bytes(self) -> int:
        """Bytes of all bodies in memory now."""
        return sum(len(reading.data) for reading in self._open)

    def check_head(self, method: str, headers: Headers) -> None:
        """Raises UserError if the headers announce a body that is too large, or one that is not JSON from a web page.

        A browser sends a preflight request before it sends JSON to another origin, and always sends an Origin header.
        From other clients, such as curl -d, a body without the JSON content type is parsed as JSON.
        """
        length = headers.get("content-length", "0")
        if len(length) > 12 or int(length) > self._max_bytes:
            raise self._too_large()
        is_json = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
        if (method == "POST" or has_body(headers)) and not is_json and "origin" in headers:
            raise UnsupportedMediaType("The body must be JSON", "Send the header Content-Type: application/json")

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytes]:
        """Yields the whole body of ``request``, which counts as memory in use until the block ends.

        Raises UserError if the body is too large, too slow or dropped, and ClientDisconnect.
        """
        reading = _Reading(asyncio.timeout(BODY_S))
        self._open.add(reading)
        try:
            async with reading.deadline:
                await self._read(reading, request.receive)
        except TimeoutError:
            if not reading.displaced:
                raise BodyTooSlow(f"The body did not arrive within {BODY_S:g} s", "Send it faster") from None
        finally:
            self._open.discard(reading)
        if reading.displaced:
            raise Unavailable("Too many large bodies are being received", "Send the request again later")
        reading.complete = True
        self._open.add(reading)
        try:
            yield bytes(reading.data)
        finally:
            self._open.discard(reading)

    async def _read(self, reading: _Reading, receive: Receive) -> None:
        more = True
        while more and not reading.displaced:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            reading.data += message.get("body", b"")
            more = message.get("more_body", False)
            if len(reading.data) > self._max_bytes:
                raise self._too_large()
            self._make_room()

    def _make_room(self) -> None:
        excess = self.num_bytes - SHARE * self._max_bytes
        for reading in sorted(self._open, key=lambda reading: -len(reading.data)):
            if excess <= 0:
                break
            if not reading.complete:
                excess -= len(reading.data)
                reading.displaced, reading.data = True, bytearray()
                reading.deadline.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than {self._max_bytes / (1 << 20):g} MiB", "Send less at once")


def has_body(headers: Headers) -> bool:
    """Whether ``headers`` announce a body."""
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def is_framed_twice(headers: Headers) -> bool:
    """Whether a request has both Content-Length and Transfer-Encoding (RFC 9112, 6.3: request smuggling).

    A proxy may have used the other header, so further requests on this connection cannot be trusted.
    """
    return "content-length" in headers and "transfer-encoding" in headers


ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
AS_LISTS = bytes.maketrans(b"{}", b"[]")


def check_json(body: bytes) -> None:
    """Raises UserError for a body that is not UTF-8, or whose JSON would take long to parse or overflow the stack.

    Does not check that the body is valid JSON. Takes time in proportion to the length of any body.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"The body is not UTF-8 at byte {error.start}", "Send JSON in UTF-8") from None
    if b"\0" in body:
        raise UserError("The body has a NUL character", "Send JSON in UTF-8")
    _check_number(body.count(b"\\"), MAX_ESCAPES, "backslashes")
    quotes_are_ends = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    _check_number(quotes_are_ends.count(b'"') // 2, MAX_STRINGS, "strings")
    outside = b"".join(quotes_are_ends.split(b'"')[::2])
    _check_number(outside.count(b","), MAX_VALUES, "values")
    brackets = outside.translate(AS_LISTS, ALL_BUT_BRACKETS)
    _check_number(brackets.count(b"["), MAX_CONTAINERS, "lists and objects")
    for _ in range(MAX_DEPTH):  # each pass removes the innermost pairs
        if not brackets:
            return
        brackets = brackets[: 2 * MAX_CONTAINERS].replace(b"[]", b"")
    if brackets.strip(b"]"):
        raise UserError(f"The body is nested more than {MAX_DEPTH} deep, or not whole", "Send flatter JSON")


def _check_number(number: int, limit: int, things: str) -> None:
    if number > limit:
        raise UserError(f"The body has more than {limit} {things}", "Send less at once")
