"""The last requests of each key with their answers, kept in memory for ``freedive replay`` where that is asked for."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from fastapi import Request, Response

from freedive.engine.recording import Recording
from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.request_record import RequestRecord
from freedive.server.routing import APIRouter

REPLAYABLE = {"stop", "length", "tool_calls", "repetition"}
"""Ends of answers that come again; one whose client left ends elsewhere."""

KEPT_BYTES = 64 << 20
"""Bytes of JSON that the kept requests of one key may take together."""


@dataclass(frozen=True)
class KeptRequest:
    """A finished request with its answers as JSON, under the id that its answer carried (``X-Request-Id``).

    ``summary`` is what a list shows of it: no content.
    """

    id: str
    summary: Json
    text: bytes

    @classmethod
    def of(cls, record: RequestRecord, recording: Recording) -> KeptRequest:
        """The ``recording`` of the request of ``record``. UserError where it has no JSON."""
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

    They are kept as JSON, of which each key has ``KEPT_BYTES`` at most: the oldest make room. A request that is larger
    than that is not kept, nor is one that has no JSON.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[str, deque[KeptRequest]] = {}

    def __call__(self, record: RequestRecord) -> None:
        """Keep a request that has ended, if its answers are whole."""
        completions = record.completions
        if not (self._limit and completions and set(completions.finishes) <= REPLAYABLE):
            return
        if recording := completions.recording:
            with suppress(UserError):
                self._keep(record.key.id, KeptRequest.of(record, recording))

    def _keep(self, key_id: str, request: KeptRequest) -> None:
        """Keep ``request`` if it fits, at the expense of the oldest."""
        if len(request.text) > KEPT_BYTES:
            return
        kept = self._kept.setdefault(key_id, deque())
        kept.append(request)
        while len(kept) > self._limit or sum(len(each.text) for each in kept) > KEPT_BYTES:
            kept.popleft()

    def of(self, key_id: str) -> list[KeptRequest]:
        """The requests of one key, the newest first."""
        return list(reversed(self._kept.get(key_id, ())))

    def find(self, id: str, key_id: str) -> KeptRequest:
        """One of them. Raises NotFound."""
        for kept in self.of(key_id):
            if kept.id == id:
                return kept
        remedy = "See /v1/requests for those that are" if self._limit else "Start the server with --keep-requests"
        raise NotFound(f"no request {id!r} is kept", remedy)


def router(kept: KeptRequests) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/requests", tags=["server"])

    @routes.get("", summary="The key's own last requests, where the server keeps them")
    async def requests(request: Request) -> Json:
        return {"object": "list", "data": [each.summary for each in kept.of(request.state.record.key.id)]}

    @routes.get("/{request_id}", summary="A kept request with its answers, for freedive replay", response_model=None)
    async def recording(request_id: str, request: Request) -> Response:
        found = kept.find(request_id, request.state.record.key.id)
        return Response(found.text, media_type="application/json")

    return routes
