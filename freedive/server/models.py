"""The models of a server: loaded on demand, unloaded when idle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeVar, cast

from fastapi.concurrency import run_in_threadpool

from freedive.errors import NotFound, Overloaded, Unavailable, UserError
from freedive.server.model import Model, Renamed
from freedive.server.model_info import ModelInfo
from freedive.server.tasks import running

log = logging.getLogger(__name__)

State = Literal["loaded", "loading", "asleep"]
T = TypeVar("T")

FOREVER = float("inf")
TICK_S = 0.5
"""Seconds between two checks for models that have expired or failed."""

MAX_NAME = 1024
"""The most characters of a name that is looked for: folding the case of a long text would hold other requests."""

PATIENCE_S = 10.0
"""Seconds that a request waits for busy models to make room for the one it names."""
POLL_S = 0.02

RETRY_S = 10
"""Seconds between two attempts to reload a failed preloaded model without a request for it."""


class LoadedJustNow(Overloaded):
    """The model that would make room stays for as long as loading it took."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that the server offers: how to load it, and about how many bytes of memory it takes.

    ``modified_at`` is the modification time of its files, in seconds since 1970; ``info`` reads the files. Requests may
    also use the names in ``also``, which are not listed to clients; neither is ``source``, by which the operator named
    it.
    """

    name: str
    load: Callable[[], Model]
    num_bytes: int = 0
    modified_at: float = 0
    info: Callable[[], ModelInfo] = ModelInfo
    also: tuple[str, ...] = ()
    source: str = ""


@dataclass(eq=False)
class Slot:
    """An offered model, and its loaded instance if there is one. Times are from ``time.monotonic``.

    ``preloaded``: the operator loaded it at the start, and it does not expire. ``fetched``: a client had it downloaded.
    ``failure`` is why the model must be loaded again. The model is not unloaded for another one before ``stays_until``.
    """

    entry: ModelEntry
    keep_alive_s: float
    model: Model | None = None
    preloaded: bool = False
    fetched: bool = False
    failure: str = ""
    num_users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    stays_until: float = 0
    retry_at: float = 0

    @property
    def expires_at(self) -> float:
        return self.used_at + self.keep_alive_s

    def under(self, name: str) -> Slot:
        """Returns a copy of this slot under another name."""
        model = cast(Model, Renamed(self.model, name)) if self.model else None
        return replace(self, entry=replace(self.entry, name=name), model=model)

    @property
    def busy(self) -> bool:
        """Whether the model has requests. A failed model is busy only while a request waits for it to be loaded."""
        if self.num_users:
            return True
        if self.has_failed:
            return False
        stats = self.model.engine.stats() if self.model else None
        return bool(stats and stats.running + stats.waiting)

    @property
    def has_failed(self) -> bool:
        """Whether the model is in memory, but its engine has failed."""
        return bool(self.model and self.model.engine.failure)

    @property
    def state(self) -> State:
        """Whether the model is in memory, or a request waits until it is."""
        if self.model and not self.has_failed:
            return "loaded"
        return "loading" if self.num_users else "asleep"

    @property
    def trouble(self) -> str:
        """Why the model does not answer; empty if it answers or is not loaded."""
        if self.model and self.model.engine.failure:
            return f"it has failed ({self.model.engine.failure})"
        if self.model and (seconds := self.model.engine.stalled_s):
            return f"it has made no progress for {seconds:.0f} s"
        return f"it is loaded again, for it has failed ({self.failure})" if self.failure else ""


class Models:
    """All offered models, by name. Belongs to one event loop.

    ``max_bytes`` limits the memory of loaded models: the least recently used model is unloaded, but not before it was
    loaded for as long as loading took, nor while it is busy: requests wait for that, but not for ever. A model that
    was loaded on demand is unloaded ``keep_alive_s`` after its last use. Models in ``loaded`` are the operator's: they
    do not expire, and are unloaded last. A model whose engine has failed is loaded again. ``aliases`` maps further
    names to models. Raises UserError for an alias of an unknown model.
    """

    def __init__(
        self,
        entries: Iterable[ModelEntry],
        loaded: Sequence[Model] = (),
        *,
        max_bytes: float = FOREVER,
        keep_alive_s: float = FOREVER,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._slots = {each.name: Slot(each, keep_alive_s) for each in entries}
        self._max_bytes = max_bytes
        self._keep_alive_s = keep_alive_s
        self._changing = asyncio.Lock()
        for model in loaded:
            slot = self._slots[model.name]
            slot.model, slot.keep_alive_s, slot.preloaded = model, FOREVER, True
        self._aliases: dict[str, Slot] = {}
        for alias, name in aliases.items():
            if alias in self._slots:
                what = f"{alias} cannot be an alias, for a model has this name"
                raise UserError(what, "Choose another", param="alias")
            self._aliases[alias] = self._find(name)

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Every offered model by its name, in the order given, then by its aliases."""
        return self._slots | {alias: slot.under(alias) for alias, slot in self._aliases.items()}

    @property
    def loaded(self) -> list[Model]:
        """The models in memory."""
        return [slot.model for slot in self._slots.values() if slot.model]

    @property
    def troubles(self) -> dict[str, str]:
        """Why models do not answer, by name, for models that have failed or stalled."""
        return {name: slot.trouble for name, slot in self._slots.items() if slot.trouble}

    def add(self, entry: ModelEntry) -> None:
        """Adds a model that was downloaded for a client, unless a model has this name already."""
        self._slots.setdefault(entry.name, Slot(entry, self._keep_alive_s, fetched=True))

    def slot(self, name: str) -> Slot:
        """Returns the slot of a model, under the alias if ``name`` is one. Raises NotFound."""
        slot, alias = self._find(name), self._alias(name)
        return slot.under(alias) if alias else slot

    def __contains__(self, name: str) -> bool:
        """Whether a model has this name or alias."""
        try:
            return bool(self._find(name))
        except NotFound:
            return False

    def _alias(self, name: str) -> str | None:
        return next((each for each in (name, name.removesuffix(":latest")) if each in self._aliases), None)

    def _find(self, name: str) -> Slot:
        """Returns the slot of a model by its name, alias or other name. Raises NotFound with the names of all models.

        Accepts ``name:latest``, as Ollama's clients write a name, and ignores upper case, as hubs do.
        """
        if alias := self._alias(name):
            return self._aliases[alias]
        folded = name.lower() if len(name) <= MAX_NAME else ""
        spellings = {name, folded, folded.removesuffix(":latest")}
        for slot in self._slots.values():
            if spellings & {slot.entry.name.lower(), *slot.entry.also}:
                return slot
        names_of_all = ", ".join(self.slots)
        raise NotFound(f"The model '{name}' is not served here", f"Served models: {names_of_all}", param="model")

    def named(self, name: str) -> str:
        """Returns ``name``, or the loaded model's if it is empty. Raises UserError if not exactly one is loaded."""
        if name or len(self.loaded) == 1:
            return name or self.loaded[0].name
        raise UserError("'model' is missing", f"Choose one of {', '.join(self.slots)}", param="model")

    @asynccontextmanager
    async def use(self, name: str, keep_alive_s: float | None = None) -> AsyncIterator[Model]:
        """Yields the model, which is loaded first if necessary, and is not unloaded while the block or its answers run.

        ``keep_alive_s`` replaces the time that the model stays after its last use. Raises NotFound, Overloaded if busy
        models leave no memory for it for ``PATIENCE_S``, Unavailable if it has stalled, and the errors of loading.
        """
        slot, alias = self._find(name), self._alias(name)
        slot.num_users += 1
        try:
            model = slot.model if slot.model and not slot.has_failed else await self._loaded(slot)
            if model.engine.stalled_s:
                raise Unavailable(f"'{slot.entry.name}' does not answer: {slot.trouble}", "Try again later")
            yield cast(Model, Renamed(model, alias)) if alias else model
        finally:
            slot.num_users -= 1
            slot.used_at = time.monotonic()
            if keep_alive_s is not None:
                slot.keep_alive_s = keep_alive_s

    async def release(self, name: str) -> None:
        """Unloads a model, as soon as it has answered its current requests."""
        slot = self._find(name)
        slot.keep_alive_s = 0
        async with self._changing:
            await self._unload_idle(slot)

    async def remove(self, name: str, work: Callable[[], T]) -> T:
        """Runs ``work`` in a thread, which removes the files of a model, and serves the model no more.

        Of a model that is not served only the files are removed. Raises UserError if the model is in memory, has an
        alias, or is the only one.
        """
        async with self._changing:  # so that nobody loads it meanwhile
            slot = self._find(name) if name in self else None
            if slot and (slot.model or slot.num_users):
                raise UserError(f"'{name}' is in memory", "Unload it first", param="model")
            if slot and (aliases := [alias for alias, other in self._aliases.items() if other is slot]):
                what = f"'{name}' is served under the name {aliases[0]}, too"
                raise UserError(what, "Serve without this alias first", param="model")
            if slot and len(self._slots) == 1:
                raise UserError(f"'{name}' is the only model that is served", "Fetch another one first", param="model")
            result = await run_in_threadpool(work)
            if slot:
                del self._slots[slot.entry.name]
        return result

    async def expire(self) -> None:
        """Unloads expired models and reloads failed preloaded models, in an endless loop."""
        while True:
            await asyncio.sleep(TICK_S)
            for slot in tuple(self._slots.values()):
                try:
                    await self._maintain(slot)
                except Exception:
                    log.exception("model %s", slot.entry.name)

    async def _maintain(self, slot: Slot) -> None:
        now = time.monotonic()
        if slot.has_failed or slot.failure:
            if slot.preloaded and now >= slot.retry_at:
                slot.retry_at = now + RETRY_S
                await self._loaded_now(slot)  # other models expire meanwhile, so it does not wait for room
            elif not slot.preloaded and not slot.busy:
                async with self._changing:
                    await self._unload_idle(slot)
                slot.failure = ""
        elif slot.model and slot.busy:
            slot.used_at = now
        elif slot.model and slot.expires_at <= now:
            async with self._changing:
                await self._unload_idle(slot)

    async def _loaded(self, slot: Slot) -> Model:
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._loaded_now(slot)
            except LoadedJustNow:
                pass  # it may be replaced soon
            except Overloaded:
                if time.monotonic() >= give_up_at or self._is_hopeless(slot):
                    raise
            await asyncio.sleep(POLL_S)  # without the lock, so that models can be unloaded meanwhile

    async def _loaded_now(self, slot: Slot) -> Model:
        async with self._changing:  # one at a time: each load sizes its cache by the free memory
            if self._slots.get(slot.entry.name) is not slot:
                raise NotFound(f"The model '{slot.entry.name}' was removed", "Choose another one", param="model")
            if slot.has_failed:
                await self._unload(slot)
            if slot.model is None:
                await self._make_room(slot)
                begun = time.monotonic()
                slot.model = await run_in_threadpool(slot.entry.load)
                slot.stays_until = 2 * time.monotonic() - begun
                slot.failure = ""
            return slot.model

    def _replaceable_by(self, slot: Slot) -> list[Slot]:
        """Returns the loaded models that may be unloaded for ``slot`` when they are idle."""
        return [each for each in self._slots.values() if each.model and not (slot.fetched and each.preloaded)]

    def _is_hopeless(self, slot: Slot) -> bool:
        """Whether the models that are not unloaded for ``slot`` leave no room for it."""
        replaceable = [each.model for each in self._replaceable_by(slot)]
        return not self._fits(slot, [model for model in self.loaded if model not in replaceable])

    def _fits(self, slot: Slot, others: Sequence[Model]) -> bool:
        """Whether the model fits into memory with ``others``; alone, it is always loaded."""
        return not others or sum(model.num_bytes for model in others) + slot.entry.num_bytes <= self._max_bytes

    async def _make_room(self, slot: Slot) -> None:
        while not self._fits(slot, others := self.loaded):
            idle = [other for other in self._replaceable_by(slot) if not other.busy]
            if not idle or self._is_hopeless(slot):
                names = ", ".join(model.name for model in others)
                what = f"'{slot.entry.name}' does not fit into memory with {names}, busy or kept by the operator"
                raise Overloaded(what, "Try again later")
            oldest = min(idle, key=lambda other: (other.preloaded, other.used_at))
            if oldest.stays_until > time.monotonic():  # else two models could replace each other for ever
                raise LoadedJustNow(f"'{oldest.entry.name}' was loaded just now", "Try again later")
            await self._unload(oldest)

    async def _unload_idle(self, slot: Slot) -> None:
        if not slot.busy:
            await self._unload(slot)

    async def _unload(self, slot: Slot) -> None:
        model, slot.model = slot.model, None  # from here on, a new request loads it again
        slot.keep_alive_s = FOREVER if slot.preloaded else self._keep_alive_s
        if not model:
            return
        slot.failure = model.engine.failure
        try:
            await run_in_threadpool(model.close)
        except Exception:
            log.exception("model %s did not close well", slot.entry.name)

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Runs :meth:`expire` while the block runs."""
        async with running(self.expire()):
            yield
