"""A fair queue: the least served user of the least served tenant is next; requests of one user keep their order.

A tenant is the holder of one key; users are names that a tenant gives, so they share what it has and no more. Service
is counted in tokens, as in "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024), section 4: one who
comes back after a pause begins where the least served of the others is, so that nobody saves up turns.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

GENERATED_WEIGHT = 2
"""What a generated token counts, where one of a prompt counts 1."""


class OfTenant(Protocol):
    @property
    def tenant(self) -> str: ...


class OfUser(OfTenant, Protocol):
    @property
    def user(self) -> str: ...


R = TypeVar("R", bound=OfUser)


class ServiceCounters:
    """Counts the tokens that each tenant or user received while it has an open request."""

    def __init__(self) -> None:
        self._num_open: Counter[str] = Counter()
        self._served: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._num_open)

    def open(self, name: str) -> None:
        """A request of a party begins. A new party is one below the least served: at a tie, who comes is first."""
        if not self._num_open[name]:
            self._served[name] = min(self._served.values(), default=0) - 1
        self._num_open[name] += 1

    def close(self, name: str) -> None:
        """A request of a party has ended."""
        self._num_open[name] -= 1
        if not self._num_open[name]:
            del self._num_open[name], self._served[name]

    def charge(self, name: str, tokens: float) -> None:
        """Charge ``tokens`` to ``name``."""
        self._served[name] += tokens

    def served(self, name: str) -> float:
        """What a party was given so far, in tokens, beyond what others had when it came."""
        return self._served[name]

    def least(self, names: Iterable[str]) -> str:
        """Of ``names``, the one that was served least."""
        return min(names, key=self._served.__getitem__)


class FairQueue(Generic[R]):
    """Waiting requests. ``add`` and ``finish`` tell when one begins and ends to be under way, waiting or running."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, deque[R]]] = {}
        self._tenants = ServiceCounters()
        self._users: dict[str, ServiceCounters] = {}

    def __len__(self) -> int:
        return sum(len(requests) for users in self._waiting.values() for requests in users.values())

    def __iter__(self) -> Iterator[R]:
        return (request for users in self._waiting.values() for requests in users.values() for request in requests)

    def add(self, request: R) -> None:
        """Queue a new request behind the others of its user."""
        self._tenants.open(request.tenant)
        self._users.setdefault(request.tenant, ServiceCounters()).open(request.user)
        self._requests(request).append(request)

    def requeue(self, request: R) -> None:
        """Queue a preempted request, in front of the others of its user."""
        self._requests(request).appendleft(request)

    def next(self) -> R:
        """The request whose turn it is; it stays in the queue."""
        tenant = self._tenants.least(self._waiting)
        users = self._waiting[tenant]
        return users[self._users[tenant].least(users)][0]

    def take(self, request: R) -> None:
        """Take a waiting request out of the queue, to run or to end."""
        users = self._waiting[request.tenant]
        users[request.user].remove(request)
        if not users[request.user]:
            del users[request.user]
        if not users:
            del self._waiting[request.tenant]

    def finish(self, request: R) -> None:
        """A request has ended."""
        self._tenants.close(request.tenant)
        users = self._users[request.tenant]
        users.close(request.user)
        if not users:
            del self._users[request.tenant]

    def charge(self, request: R, tokens: float) -> None:
        """Charge ``tokens`` to the tenant and the user of ``request``."""
        self._tenants.charge(request.tenant, tokens)
        self._users[request.tenant].charge(request.user, tokens)

    def served(self, request: R) -> tuple[float, float]:
        """What the tenant and the user of ``request`` were given so far: who has less is first."""
        return self._tenants.served(request.tenant), self._users[request.tenant].served(request.user)

    def _requests(self, request: R) -> deque[R]:
        return self._waiting.setdefault(request.tenant, {}).setdefault(request.user, deque())


def is_full(under_way: Collection[OfTenant], tenant: str, most: int) -> bool:
    """Whether another request of ``tenant`` must be refused: ``most`` are under way, and it has its part of them.

    So one tenant cannot fill all places. Together, a few more than ``most`` may be under way.
    """
    if len(under_way) < most:
        return False
    counts = Counter(request.tenant for request in under_way)
    return counts[tenant] >= max(1, most // len(counts.keys() | {tenant}))


def preemption_victim(running: Iterable[R], newcomer: R) -> R | None:
    """The one of ``running`` (oldest first) that is preempted for ``newcomer``, if any.

    A tenant without a place takes one from the tenant that has most; a user without one, from the user of the same
    tenant that has most. It is the youngest of that user, and nobody loses his only place.
    """
    running = list(running)
    tenants = Counter(request.tenant for request in running)
    tenant = newcomer.tenant
    if tenant not in tenants:
        tenant, most = tenants.most_common(1)[0]
        if most < 2:
            return None
    users = Counter(request.user for request in running if request.tenant == tenant)
    user, most = users.most_common(1)[0]
    if tenant == newcomer.tenant and (newcomer.user in users or most < 2):
        return None
    return next(request for request in reversed(running) if (request.tenant, request.user) == (tenant, user))
