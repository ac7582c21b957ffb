"""The models of this machine for the page of ``freedive serve``: the facts and the work of the command line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache as cached
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, cast

from freedive import machine
from freedive.checkpoint.quantize import FORMATS, Target
from freedive.commands.client_errors import private
from freedive.commands.estimate import RECORD_BYTES
from freedive.commands.forecast import measure_machine
from freedive.commands.models import listed
from freedive.commands.plan import ranked, report
from freedive.commands.quantize import write_quantized
from freedive.commands.served import for_clients, model_entry
from freedive.config import EngineConfig
from freedive.errors import NotFound, UserError
from freedive.hub import cache
from freedive.hub.catalogue import entry_for
from freedive.hub.download import digest
from freedive.hub.download_limits import DownloadLimits
from freedive.hub.sources import QUANTIZED, Address, parse, resolve
from freedive.model.speed import MachineSpeed
from freedive.ops.memory_plan import default_budget
from freedive.progress import Advance
from freedive.server.library.line import Progress
from freedive.server.models import ModelEntry


class LocalLibrary:
    """The library of a server whose models are loaded with the settings ``how``; it leaves ``kept_bytes`` free.

    Cards predict a model that has the memory for itself, as it was free before any model was loaded. The machine is
    measured once, for the first card.
    """

    formats = tuple(FORMATS)

    def __init__(self, how: Mapping[str, Any], kept_bytes: float) -> None:
        self._how, self._config = how, EngineConfig(**how)
        self._limits = DownloadLimits(free_bytes=kept_bytes)
        self._available = machine.available_memory()
        self._threads = self._config.threads or machine.physical_cores()
        self._measured = cached(measure_machine)
        self._measuring = Lock()

    def models(self) -> list[dict[str, Any]]:
        """Returns the facts of ``freedive list``, and what can be done with each model."""
        return [model | _state(model) for model in listed()]

    def free_bytes(self) -> int:
        """Returns the space on the disk of the cache that models may take."""
        folder = next(folder for folder in (cache.home(), *cache.home().parents) if folder.exists())
        return max(0, int(shutil.disk_usage(folder).free - self._limits.free_bytes))

    def card(self, source: str) -> dict[str, Any]:
        """Returns the report of ``freedive plan``, else the catalogue's estimate and why there is no report."""
        return private(lambda: self._card(source))()

    def _card(self, source: str) -> dict[str, Any]:
        try:
            return report(source, self._config, self._threads, self._measure, self._available)
        except UserError as error:
            entry = entry_for(source)
            if not entry or isinstance(parse(source), Path):
                raise
            budget = self._config.memory_bytes or default_budget(self._available)
            return ranked(entry, self._measure(self._threads, RECORD_BYTES), budget) | {"problem": error.what}

    def _measure(self, threads: int, record_bytes: int) -> MachineSpeed:
        with self._measuring:
            return self._measured(threads, record_bytes)

    def remove(self, name: str) -> int:
        """Deletes a model of the cache and returns the number of bytes freed. Raises NotFound for any other one."""
        place = parse(name)
        freed = cache.remove(str(place)) if isinstance(place, Address) else 0
        if not freed:
            raise NotFound(f"There is nothing of {name} to remove", "Choose another model", param="model")
        return freed

    def discard(self, name: str) -> int:
        """Deletes what an unfinished download left, and returns the number of bytes freed."""
        place = parse(name)
        return cache.discard(str(place)) if isinstance(place, Address) else 0

    def quantize(self, source: str, name: str, format: str, progress: Progress) -> ModelEntry:
        """Makes a copy named after the model ``name`` and the format. Nothing is left of one that is given up."""

        def work() -> ModelEntry:
            ref = f"{QUANTIZED}:{re.sub(r'[^A-Za-z0-9._]+', '-', name)}-{format}"
            with cache.locked(ref):
                if not cache.find(ref):
                    self._write(ref, source, cast(Target, format), progress)
            return for_clients(model_entry(ref, self._how, ref))

        return private(work)()

    def _write(self, ref: str, source: str, format: Target, progress: Progress) -> None:
        @contextmanager
        def bar(title: str, total: int) -> Iterator[Advance]:
            progress.total = total

            def advance(count: int) -> None:
                progress.check()
                progress.advance(count)

            yield advance

        whole = cache.model_folder(ref)
        shutil.rmtree(whole, ignore_errors=True)  # of a process that was killed
        folder = whole / cache.FILES
        try:
            folder.mkdir(parents=True)
            check = partial(self._limits.check_space, ref, folder=whole)
            write_quantized(resolve(source, download=False), folder, format, bar=bar, check=check)
            record_files(ref, source)
        except BaseException:
            shutil.rmtree(whole, ignore_errors=True)
            raise


def _state(model: Mapping[str, Any]) -> dict[str, Any]:
    place = parse(model["name"])
    if isinstance(place, Path):
        return {"partial_bytes": 0, "removable": False}
    return {"partial_bytes": cache.partial_bytes(str(place)), "removable": bool(model["bytes_here"])}


def record_files(ref: str, source: str) -> None:
    """Marks the model ``ref``, which was made from ``source``, as complete: with all files that its folder has."""
    folder = cache.model_folder(ref) / cache.FILES
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [cache.StoredFile(str(path.relative_to(folder)), path.stat().st_size, digest(path)) for path in paths]
    cache.record(ref, ".", tuple(files), _licence(source))


def _licence(source: str) -> str | None:
    entry, place = entry_for(source), parse(source)
    stored = cache.find(str(place)) if isinstance(place, Address) else None
    return entry.licence if entry else stored.licence if stored else None
