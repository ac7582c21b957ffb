"""A fair queue: the least served user of the least served tenant is next; requests of one user keep their order.

A tenant is the owner of one key. Users are names that a tenant chooses, so the users of a tenant divide its share of
the service. Service is counted in tokens, as in "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024),
section 4: the counter of a tenant that returns after a pause starts at the lowest counter of the others, so that idle
time earns no credit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

from freedive.engine.generation import Generation

GENERATED_WEIGHT = 2
"""Weight of a generated token in the service counters; a prompt token has weight 1."""


class OfTenant(Protocol):
    @property
    def tenant(self) -> str: ...


class OfUser(OfTenant, Protocol):
    @property
    def user(self) -> str: ...


R = TypeVar("R", bound=OfUser)


class ServiceCounters:
    """Counts the tokens served to each party (a tenant or a user) while the party has open requests."""

    def __init__(self) -> None:
        self._num_open: Counter[str] = Counter()
        self._served: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._num_open)

    def open(self, name: str) -> None:
        """Records a new request of the party ``name``; a new party starts one token below the lowest counter.

        So the new party is first if it would be equal to another.
        """
        if not self._num_open[name]:
            self._served[name] = min(self._served.values(), default=0) - 1
        self._num_open[name] += 1

    def close(self, name: str) -> None:
        """Records the end of a request of the party ``name``, and drops the counter at the end of its last request."""
        self._num_open[name] -= 1
        if not self._num_open[name]:
            del self._num_open[name], self._served[name]

    def charge(self, name: str, tokens: float) -> None:
        """Adds ``tokens`` to the counter of the party ``name``."""
        self._served[name] += tokens

    def served(self, name: str) -> float:
        """Returns the counter of the party ``name``, in tokens."""
        return self._served[name]

    def least(self, names: Iterable[str]) -> str:
        """Returns the least served of the parties ``names``."""
        return min(names, key=self._served.__getitem__)


class FairQueue(Generic[R]):
    """Waiting requests, ordered by the service of tenants and users.

    A request is open, waiting or running, from ``add`` to ``finish``.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, deque[R]]] = {}
        self._tenants = ServiceCounters()
        self._users: dict[str, ServiceCounters] = {}

    def __len__(self) -> int:
        return sum(len(requests) for users in self._waiting.values() for requests in users.values())

    def __iter__(self) -> Iterator[R]:
        return (request for users in self._waiting.values() for requests in users.values() for request in requests)

    def add(self, request: R) -> None:
        """Queues a new request after the other requests of its user."""
        self._tenants.open(request.tenant)
        self._users.setdefault(request.tenant, ServiceCounters()).open(request.user)
        self._requests(request).append(request)

    def requeue(self, request: R) -> None:
        """Queues a preempted request before the other requests of its user."""
        self._requests(request).appendleft(request)

    def next(self) -> R:
        """Returns the next request and leaves it in the queue."""
        tenant = self._tenants.least(self._waiting)
        users = self._waiting[tenant]
        return users[self._users[tenant].least(users)][0]

    def take(self, request: R) -> None:
        """Removes a waiting request from the queue, because it starts or ends."""
        users = self._waiting[request.tenant]
        users[request.user].remove(request)
        if not users[request.user]:
            del users[request.user]
        if not users:
            del self._waiting[request.tenant]

    def finish(self, request: R) -> None:
        """Records that ``request``, which is not in the queue any more, has ended."""
        self._tenants.close(request.tenant)
        users = self._users[request.tenant]
        users.close(request.user)
        if not users:
            del self._users[request.tenant]

    def charge(self, request: R, tokens: float) -> None:
        """Adds ``tokens`` to the counters of the tenant and the user of ``request``."""
        self._tenants.charge(request.tenant, tokens)
        self._users[request.tenant].charge(request.user, tokens)

    def served(self, request: R) -> tuple[float, float]:
        """Returns the counters of the tenant and the user of ``request``; requests with lower counters are first."""
        return self._tenants.served(request.tenant), self._users[request.tenant].served(request.user)

    def _requests(self, request: R) -> deque[R]:
        return self._waiting.setdefault(request.tenant, {}).setdefault(request.user, deque())


def is_full(under_way: Collection[OfTenant], tenant: str, most: int) -> bool:
    """Returns whether another request of ``tenant`` must be refused.

    It is refused if at least ``most`` requests are open and ``tenant`` has at least its equal part of them. So one
    tenant cannot fill the queue, and the number of open requests may exceed ``most`` a little.
    """
    if len(under_way) < most:
        return False
    counts = Counter(request.tenant for request in under_way)
    return counts[tenant] >= max(1, most // len(counts.keys() | {tenant}))


def num_before(arrived: Iterable[Generation], generation: Generation) -> int:
    """Returns how many of the requests that ``arrived`` before ``generation`` wait; 0 if it does not wait itself."""
    if generation.timings.started_at is not None:
        return 0
    earlier = takewhile(lambda each: each is not generation, arrived)
    return sum(each.timings.started_at is None for each in earlier)


def preemption_victim(running: Iterable[R], newcomer: R) -> R | None:
    """Returns the request of ``running`` (oldest first) that must be preempted for ``newcomer``, or None.

    A tenant without a running request takes the place of the tenant with the most running requests; a user without one
    takes the place of the user of the same tenant with the most. The victim is the newest request of the user with the
    most running requests. No tenant or user loses its only running request.
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
