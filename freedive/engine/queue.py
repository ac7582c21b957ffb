"""Whose turn it is: the user who has been served least comes first, and each user's requests in order.

Service is counted in tokens, as in "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024), section 4:
one who comes back after a pause begins where the least served of the others is, so that nobody saves up turns.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

GENERATED_WEIGHT = 2
"""What a generated token counts, where one of a prompt counts 1."""


class OfUser(Protocol):
    @property
    def user(self) -> str: ...


R = TypeVar("R", bound=OfUser)


class FairQueue(Generic[R]):
    """Waiting requests. ``enter`` and ``leave`` tell when one begins and ends to be under way, waiting or running."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[R]] = {}
        self._open: Counter[str] = Counter()
        self._served: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[R]:
        return (request for requests in self._waiting.values() for request in requests)

    def enter(self, request: R) -> None:
        """Queue a new request behind the others of its user."""
        if not self._open[request.user]:
            self._served[request.user] = (
                min(self._served.values(), default=0) - 1
            )  # one less: at a tie who comes is first
        self._open[request.user] += 1
        self._waiting.setdefault(request.user, deque()).append(request)

    def back(self, request: R) -> None:
        """Queue a request that was running before the others of its user."""
        self._waiting.setdefault(request.user, deque()).appendleft(request)

    def next(self) -> R:
        """The request whose turn it is; it stays in the queue."""
        return self._waiting[min(self._waiting, key=self._served.__getitem__)][0]

    def take(self, request: R) -> None:
        """Take a waiting request out of the queue, to run or to end."""
        requests = self._waiting[request.user]
        requests.remove(request)
        if not requests:
            del self._waiting[request.user]

    def leave(self, request: R) -> None:
        """A request has ended."""
        self._open[request.user] -= 1
        if not self._open[request.user]:
            del self._open[request.user], self._served[request.user]

    def serve(self, user: str, tokens: float) -> None:
        """Count what ``user`` was given."""
        self._served[user] += tokens

    def served(self, user: str) -> float:
        """What ``user`` was given so far, in tokens, beyond what others had when they came."""
        return self._served[user]
