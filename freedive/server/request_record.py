"""The record of one HTTP request, which metrics, logs and traces receive when the request has ended."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from freedive.server.completion_stream import Completions
from freedive.server.keys import Key, nobody

OWN_ID = re.compile(r"[!-~]{1,128}")
"""Request ids that a client may choose with X-Request-Id: they are safe in headers and logs."""
CLIENT_LEFT = 499
"""The status of a request whose client disconnected before the response began."""


@dataclass(eq=False)
class RequestRecord:
    """One HTTP request: its tenant (``key``), the tenant's name (``caller``), route, status, completions and times.

    ``route`` is the pattern of the path, "" if no route matches. ``completions`` is None for requests that generate
    nothing. ``ignored`` holds the names of fields that the client sent and that had no effect. Times are from
    ``time.perf_counter``, except ``began_at``, in seconds since 1970. The record has no content of the request, except
    in ``completions`` if the server keeps requests.
    """

    id: str
    method: str
    trace_parent: str = ""
    key: Key = field(default_factory=nobody)
    caller: str = ""
    route: str = ""
    status: int = CLIENT_LEFT
    completions: Completions | None = None
    num_body_bytes: int = 0
    ignored: set[str] = field(default_factory=set)
    began_at: float = field(default_factory=time.time)
    started_at: float = field(default_factory=time.perf_counter)
    ended_at: float | None = None

    @classmethod
    def of(cls, scope: Scope, headers: Headers) -> RequestRecord:
        """Returns the record of a request that has just arrived."""
        given = headers.get("x-request-id", "")
        id = given if OWN_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        return cls(id, scope["method"], headers.get("traceparent", ""))

    @property
    def seconds(self) -> float:
        """Seconds from the start of the request to its end, or to now."""
        return (self.ended_at or time.perf_counter()) - self.started_at

    @property
    def model(self) -> str:
        """The name of the model that answers, "" if the request needs none."""
        return self.completions.model.name if self.completions else ""

    @property
    def failed(self) -> bool:
        """Whether the server failed, before the response or in the middle of a completion."""
        return self.status >= 500 or bool(self.completions and self.completions.failed)


Observer = Callable[[RequestRecord], None]
"""Called with the record of each finished request. It must not raise."""


def route_pattern(scope: Scope) -> str:
    """Returns the pattern of the route that matched, "" if none did: a metric by path would have unbounded labels."""
    if route := scope.get("route"):
        own = re.search(route.path_regex.pattern.removeprefix("^"), scope["path"])  # newer Starlette omits the prefix
        return f"{scope['path'][: own.start() if own else 0]}{route.path}"
    return str(scope["root_path"] or scope["path"]) if "endpoint" in scope else ""
