"""The last requests of each key with their answers, kept in memory for ``freedive replay`` (--keep-requests)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fastapi import Request, Response

from freedive.engine.recording import Recording
from freedive.errors import NotFound
from freedive.json_object import Json
from freedive.server.request_record import RequestRecord
from freedive.server.routing import APIRouter, off_loop

REPLAYABLE = {"stop", "length", "tool_calls", "repetition"}
"""Finish reasons that a replay reproduces; an answer whose client disconnected stops at a random token."""


@dataclass(frozen=True)
class KeptRequest:
    """A finished request; ``id`` is the ``X-Request-Id`` of its answer, ``created`` is in seconds since 1970."""

    id: str
    created: float
    route: str
    num_bytes: int
    recording: Recording

    def summary(self) -> Json:
        """Returns the fields of the request for a list, without its content."""
        request, answers = self.recording.request, self.recording.answers
        num_tokens = sum(len(answer.token_ids) for answer in answers)
        about = {"model": request.model, "answers": len(answers), "generated_tokens": num_tokens}
        return {"id": self.id, "created": int(self.created), "route": self.route} | about


class KeptRequests:
    """An observer that keeps the last ``limit`` finished requests of each key; other keys do not see them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[str, deque[KeptRequest]] = {}

    def __call__(self, record: RequestRecord) -> None:
        """Keeps a finished request if all its answers are complete."""
        completions = record.completions
        if not (self._limit and completions and set(completions.finishes) <= REPLAYABLE):
            return
        if recording := completions.recording:
            kept = self._kept.setdefault(record.key.id, deque(maxlen=self._limit))
            kept.append(KeptRequest(record.id, record.began_at, record.route, record.num_body_bytes, recording))

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
        return {"object": "list", "data": [each.summary() for each in kept.of(request.state.record.key.id)]}

    @routes.get("/{request_id}", summary="A kept request with its answers, for freedive replay", response_model=None)
    async def recording(request_id: str, request: Request) -> Response:
        found = kept.find(request_id, request.state.record.key.id)
        text = await off_loop(found.num_bytes, found.recording.to_json)
        return Response(text, media_type="application/json")

    return routes
