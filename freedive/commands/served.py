"""Models as a server offers them: loaded when a request needs them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import freedive
from freedive.commands.about import about
from freedive.commands.client_errors import private
from freedive.config import EngineConfig
from freedive.hub.cache import Stored, identity
from freedive.hub.catalogue import catalogue
from freedive.hub.sources import resolve
from freedive.server.model import Model
from freedive.server.models import ModelEntry


def model_entry(name: str, how: Mapping[str, Any], id: str) -> ModelEntry:
    """Returns the entry of a model that is on this machine, under the name ``id``; ``how`` are settings of engines."""
    path = resolve(name)
    load, facts = partial(_load, name, how, id), cache(partial(about, name, path))
    paths = () if id == name else (name, str(path.absolute()))
    budget = EngineConfig(**how).memory_bytes
    size = min(_num_bytes(path), budget or sys.maxsize)
    return ModelEntry(id, load, size, path.stat().st_mtime, facts, paths, name)


def for_clients(entry: ModelEntry) -> ModelEntry:
    """Returns the entry with errors that name no folders of this machine."""
    return replace(entry, load=private(entry.load), info=private(entry.info))


def _load(name: str, how: Mapping[str, Any], id: str) -> Model:
    model = freedive.load(name, **how)
    model.name = id
    return model


def _num_bytes(path: Path) -> int:
    """Returns the approximate size of a checkpoint's weights in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def name_of(model: Stored) -> str:
    """Returns the catalogue's name of a model, or else its reference."""
    names = {identity(entry.ref): entry.name for entry in catalogue().values()}
    return names.get(identity(model.ref), model.ref)
