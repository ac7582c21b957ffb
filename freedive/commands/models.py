"""``freedive pull | list | show | rm``: the models of the catalogue and of this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from freedive import machine
from freedive.commands.describe import decoder_facts
from freedive.commands.estimate import experts_in_memory, memory_bytes
from freedive.commands.flags import REFERENCE, Reference
from freedive.commands.formatting import count_text, size_text, table_lines
from freedive.errors import NotFound, UserError
from freedive.hub import cache
from freedive.hub.catalogue import Entry, catalogue, entry_for
from freedive.hub.sources import Address, parse
from freedive.hub.sources import pull as fetch

FITS = ("yes", "paged", "no")
"""Whether a model fits into the memory: all of it, all but experts that stay on disk, or not."""

GROUPS = ("On this machine", "Fit into its memory", "Leave experts on disk", "Need more memory than it has")
"""Headings of the groups in which ``freedive list`` shows the models on a terminal."""

References = Annotated[list[str], typer.Argument(metavar="MODEL...", help=REFERENCE)]


def pull(models: References) -> None:
    for ref in models:
        place, entry = parse(ref), entry_for(ref)
        path = fetch(place).path if isinstance(place, Address) else place
        note = "" if entry is None or entry.runs else f" (freedive cannot run {entry.family} yet)"
        print(f"{ref} is at {path}{note}")


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    models = sorted(listed(), key=lambda model: (_group(model), model["memory_bytes"]))
    if as_json:
        print(json.dumps(models, indent=2))
        return
    header, *lines = table_lines([_HEADER, *map(_row, models)])
    print(header)
    for group, members in groupby(zip(map(_group, models), lines, strict=True), key=itemgetter(0)):
        if sys.stdout.isatty():  # programs get one model a line, with its name first
            print(f"\n{GROUPS[group]}")
        print(*(line for _, line in members), sep="\n")
    print(
        f"\nMEMORY: of weights, buffers and some thousand tokens of context; FITS: into the "
        f"{size_text(machine.total_memory())} of this machine; paged: with experts on disk (how fast: freedive plan)",
        file=sys.stderr,
    )


_HEADER = ("NAME", "PARAMETERS", "DOWNLOAD", "MEMORY", "FITS", "HERE", "LICENCE", "")


def _row(model: dict[str, Any]) -> Sequence[str]:
    about = model["about"] if model["runs"] else f"{model['about']} (not runnable yet)"
    sizes = [size_text(model[key]) if model[key] else "" for key in ("download_bytes", "memory_bytes", "bytes_here")]
    fits = FITS[_fit(model)]
    return model["name"], model["parameters"], *sizes[:2], fits, sizes[2], model["licence"], about


def _group(model: dict[str, Any]) -> int:
    """Returns the index in :data:`GROUPS` of a model of :func:`listed`."""
    return 0 if model["bytes_here"] else 1 + _fit(model)


def _fit(model: dict[str, Any]) -> int:
    """Returns the index in :data:`FITS`."""
    return 0 if model["fits"] else 1 if model["paged"] else 2


def listed() -> list[dict[str, Any]]:
    """Returns facts about every model of the catalogue, then about the others in the cache; an unknown size is 0."""
    here = {model.ref: model for model in cache.stored()}
    models = []
    for entry in catalogue().values():
        model, place = here.pop(entry.ref, None), parse(entry.name)
        size = place.stat().st_size if isinstance(place, Path) else model.size if model else 0
        facts = {"name": entry.name, "parameters": _parameters(entry), "download_bytes": int(entry.gigabytes * 1e9)}
        facts |= _sizes(size or entry.gigabytes * 1e9, entry) | {"bytes_here": size, "licence": entry.licence}
        models.append(facts | {"about": entry.about, "runs": entry.runs})
    for model in here.values():
        facts = {"name": model.ref, "parameters": "", "download_bytes": 0}
        facts |= _sizes(model.size) | {"bytes_here": model.size, "licence": model.licence or ""}
        models.append(facts | {"about": "", "runs": True})
    return models


def _sizes(weights: float, entry: Entry | None = None) -> dict[str, Any]:
    """Returns the memory that a model with ``weights`` bytes takes, whether this machine has it, and whether the model
    can run with experts on disk if not."""
    memory, needed = machine.total_memory(), memory_bytes(weights)
    paged = needed > memory and entry is not None and experts_in_memory(entry, memory) is not None
    return {"memory_bytes": needed, "fits": needed <= memory, "paged": paged}


def show(
    model: Reference,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: names and texts.")] = False,
) -> None:
    place, entry = parse(model), entry_for(model)
    facts = {"reference": str(place)}
    if entry:
        facts |= {"name": entry.name, "about": entry.about, "family": entry.family, "parameters": _parameters(entry)}
        facts |= {"download": f"about {entry.gigabytes:g} GB", "licence": entry.licence}
    if isinstance(place, Path):
        facts |= decoder_facts(place)
    elif stored := cache.find(str(place)):
        facts |= _stored_facts(stored)
    else:
        facts["path"] = (
            f"not on this machine; fetch it with: freedive pull {model}; predict it with: freedive plan {model}"
        )
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name.ljust(width)}  " + text.replace("\n", "\n" + " " * (width + 2)))


def _stored_facts(stored: cache.Stored) -> dict[str, str]:
    """Returns facts about a model in the cache; if freedive cannot run it, "problem" gives the reason."""
    try:
        facts = decoder_facts(stored.path)
    except UserError as error:
        facts = {"problem": str(error)}
    facts |= {"licence": stored.licence or "unknown", "revision": stored.revision or "unknown", "fetched": stored.date}
    facts |= {"path": str(stored.path), "size": size_text(stored.size)}
    return facts | {"files": "\n".join(f"{f.path}  {size_text(f.size)}  sha256 {f.sha256}" for f in stored.files)}


def rm(models: References) -> None:
    for ref in models:
        place = parse(ref)
        freed = cache.remove_packed(place) if isinstance(place, Path) else cache.remove(str(place))
        if not freed:
            raise NotFound(f"There is nothing of {ref} in the cache", "See what is with: freedive list")
        print(f"{ref}: {size_text(freed)} freed")


def _parameters(entry: Entry) -> str:
    total, active = count_text(entry.total * 1e9), count_text(entry.active * 1e9)
    return total if active == total else f"{total}, {active} active"
