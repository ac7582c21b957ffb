"""``freedive serve [MODEL...]``: models over HTTP, with a chat page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer

import freedive
from freedive import machine
from freedive.commands.about import about
from freedive.commands.flags import REFERENCE, Values, settings
from freedive.config import EngineConfig, ServerConfig, load
from freedive.errors import NotFound
from freedive.hub.cache import home, stored
from freedive.hub.catalogue import catalogue, entry_for
from freedive.hub.sources import FORMS, resolve
from freedive.progress import Advance
from freedive.server import app
from freedive.server.model import Model
from freedive.server.models import FOREVER, Known, Models
from freedive.server.ollama.pull import Progress

DEFAULT = "smollm2"
MEMORY_SHARE = 0.9
"""Part of the memory that is free which loaded models may take where ``memory_gb`` is not set."""


@settings(server=ServerConfig, engine=EngineConfig)
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", help=f"{REFERENCE} (default {DEFAULT}, and all that are here on demand)"),
    ] = None,
    *,
    server: Values,
    engine: Values,
) -> None:
    where, how = load(ServerConfig, server), asdict(load(EngineConfig, engine))
    keys = app.check_keys(where)  # before models are loaded for nothing
    app.check_port(where.host, where.port)
    served = _models(models or [DEFAULT], [] if models else _stored(), where, how)
    app.serve(served, where, keys, fetch=partial(fetched, how), stored_responses=home() / "responses.sqlite")


def _models(names: list[str], on_demand: list[str], where: ServerConfig, how: Mapping[str, Any]) -> Models:
    """``names`` loaded as far as they fit together, the others when they are asked for."""
    names = list(dict.fromkeys(names))
    known = [_known(name, how) for name in dict.fromkeys([*names, *on_demand])]
    max_bytes = where.memory_gb * 1e9 if where.memory_gb else machine.available_memory() * MEMORY_SHARE
    loaded: list[Model] = []
    num_bytes = 0
    for each in known[: len(names)]:
        if not loaded or num_bytes + each.num_bytes <= max_bytes:
            loaded.append(each.load())
            num_bytes += loaded[-1].num_bytes
    keep_alive_s = FOREVER if where.keep_alive < 0 else where.keep_alive
    return Models(known, loaded, max_bytes=max_bytes, keep_alive_s=keep_alive_s)


def _known(name: str, how: Mapping[str, Any]) -> Known:
    path = resolve(name)
    load, facts = partial(freedive.load, name, **how), cache(partial(about, name, path))
    return Known(name, load, _num_bytes(path), path.stat().st_mtime, facts)


def fetched(how: Mapping[str, Any], name: str, progress: Progress) -> Known:
    """A model that a client names, who may have what hubs have; files of this machine are not for clients to name.

    Raises NotFound for those, and what :func:`freedive.hub.sources.resolve` raises.
    """
    if not entry_for(name) and name.partition(":")[0] not in FORMS:
        raise NotFound(f"{name} is not a model of the catalogue", f"Write {FORMS['hf']}", param="model")

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Advance]:
        progress.total = total
        yield progress.advance

    resolve(name, bar=bar)
    return _known(name, how)


def _num_bytes(path: Path) -> int:
    """About what the weights of a checkpoint take."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _stored() -> list[str]:
    """The models on this machine, by the names that `freedive list` gives them."""
    entries = {entry.ref: entry.name for entry in catalogue().values()}
    return [entries.get(model.ref, model.ref) for model in stored()]
