"""The last requests of each key with their answers, kept in memory for ``freedive replay`` (--keep-requests)."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from fastapi import Request, Response

from freedive.engine.recording import Recording
from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.keys import Keys
from freedive.server.request_record import RequestRecord
from freedive.server.routing import APIRouter

REPLAYABLE = {"stop", "length", "tool_calls", "repetition"}
"""Finish reasons that a replay reproduces; an answer whose client disconnected stops at a random token."""

KEPT_BYTES = 64 << 20
"""Bytes of JSON that the kept requests of one key may take together."""


@dataclass(frozen=True)
class KeptRequest:
    """A finished request and its answers as JSON; ``id`` is the ``X-Request-Id`` of its answer.

    ``summary`` has its fields for a list, without content.
    """

    id: str
    summary: Json
    text: bytes

    @classmethod
    def of(cls, record: RequestRecord, recording: Recording) -> KeptRequest:
        """Returns ``recording`` with the summary of ``record``. Raises UserError if it cannot be written as JSON."""
        answers = recording.answers
        summary = {
            "id": record.id,
            "created": int(record.began_at),
            "route": record.route,
            "model": recording.request.model,
            "answers": len(answers),
            "generated_tokens": sum(len(answer.token_ids) for answer in answers),
        }
        return cls(record.id, summary, recording.to_json().encode())


class KeptRequests:
    """An observer that keeps the last ``limit`` finished requests of each key; other keys do not see them.

    They are stored as JSON, at most ``KEPT_BYTES`` for each key; the oldest are dropped first. Larger requests,
    and those that cannot be written as JSON, are not kept. Those of a key that ``keys`` no longer admits are dropped
    when the next request of any caller ends.
    """

    def __init__(self, limit: int, keys: Keys | None = None) -> None:
        self._limit = limit
        self._keys = keys
        self._kept: dict[str, deque[KeptRequest]] = {}

    def __call__(self, record: RequestRecord) -> None:
        """Keeps a finished request if all its answers are complete, and drops those of revoked keys."""
        self._add(record)
        if self._keys is not None:
            self._kept = {id: kept for id, kept in self._kept.items() if self._keys.admits(id)}

    def _add(self, record: RequestRecord) -> None:
        completions = record.completions
        if not (self._limit and completions and set(completions.finishes) <= REPLAYABLE):
            return
        if recording := completions.recording:
            with suppress(UserError):
                self._keep(record.key.id, KeptRequest.of(record, recording))

    def _keep(self, key_id: str, request: KeptRequest) -> None:
        """Keeps ``request`` if it fits, and drops the oldest requests of the key that no longer fit."""
        if len(request.text) > KEPT_BYTES:
            return
        kept = self._kept.setdefault(key_id, deque())
        kept.append(request)
        while len(kept) > self._limit or sum(len(each.text) for each in kept) > KEPT_BYTES:
            kept.popleft()

    def of(self, key_id: str) -> list[KeptRequest]:
        """Returns the kept requests of one key, newest first."""
        return list(reversed(self._kept.get(key_id, ())))

    def find(self, id: str, key_id: str) -> KeptRequest:
        """Returns the kept request ``id`` of one key. Raises NotFound."""
        for kept in self.of(key_id):
            if kept.id == id:
                return kept
        remedy = "GET /v1/requests lists the kept requests" if self._limit else "Start the server with --keep-requests"
        raise NotFound(f"There is no kept request {id!r}", remedy)


def router(kept: KeptRequests) -> APIRouter:
    """Returns the routes for kept requests."""
    routes = APIRouter(prefix="/v1/requests", tags=["server"])

    @routes.get("", summary="List the key's kept requests (--keep-requests)")
    async def requests(request: Request) -> Json:
        return {"object": "list", "data": [each.summary for each in kept.of(request.state.record.key.id)]}

    @routes.get("/{request_id}", summary="A kept request with its answers, for freedive replay", response_model=None)
    async def recording(request_id: str, request: Request) -> Response:
        found = kept.find(request_id, request.state.record.key.id)
        return Response(found.text, media_type="application/json")

    return routes
