"""One request from its first byte to its end: what those are told who look on."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from freedive.server.answers import Answers
from freedive.server.keys import Key, nobody

OWN_ID = re.compile(r"[!-~]{1,128}")
"""What a client may call its request; it goes into headers and logs."""
CLIENT_LEFT = 499
"""The status of a request whose client left before it had one."""


@dataclass(eq=False)
class Visit:
    """``key`` is the tenant, ``caller`` its name. ``route`` is the pattern of the path, "" where none fits.

    ``answers`` are what the request asked for, if it did. Times are by ``time.perf_counter``, but for ``began_at``, in
    seconds since 1970. Never holds what was said.
    """

    id: str
    method: str
    trace_parent: str = ""
    key: Key = field(default_factory=nobody)
    caller: str = ""
    route: str = ""
    status: int = CLIENT_LEFT
    answers: Answers | None = None
    began_at: float = field(default_factory=time.time)
    started_at: float = field(default_factory=time.perf_counter)
    ended_at: float | None = None

    @classmethod
    def of(cls, scope: Scope, headers: Headers) -> Visit:
        """A request that has just come."""
        given = headers.get("x-request-id", "")
        id = given if OWN_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        return cls(id, scope["method"], headers.get("traceparent", ""))

    @property
    def seconds(self) -> float:
        """How long it took, or takes already."""
        return (self.ended_at or time.perf_counter()) - self.started_at

    @property
    def model(self) -> str:
        """The model that answers, "" where none does."""
        return self.answers.model.name if self.answers else ""

    @property
    def failed(self) -> bool:
        """Whether the fault was ours, from the beginning or in the midst of an answer."""
        return self.status >= 500 or bool(self.answers and self.answers.failed)


Observer = Callable[[Visit], None]
"""Is told of each request when it has ended. It must not raise."""


def route_pattern(scope: Scope) -> str:
    """The pattern that a routed request's path fits, and not the path, of which there are without number."""
    if route := scope.get("route"):
        own = re.search(route.path_regex.pattern.removeprefix("^"), scope["path"])  # newer routes lack their prefix
        return f"{scope['path'][: own.start() if own else 0]}{route.path}"
    return str(scope["root_path"] or scope["path"]) if "endpoint" in scope else ""
