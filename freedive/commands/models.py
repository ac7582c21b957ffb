"""``freedive pull | list | show | rm``: the models of the catalogue and of this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from freedive import machine
from freedive.commands.describe import decoder_facts
from freedive.commands.flags import REFERENCE, Reference
from freedive.commands.formatting import count_text, print_table, size_text
from freedive.errors import NotFound, UserError
from freedive.hub import cache
from freedive.hub.catalogue import Entry, catalogue, entry_for
from freedive.hub.sources import Address, parse
from freedive.hub.sources import pull as fetch

PACKING_SHARE = 0.05
"""The memory of packed weights beyond the size of their file, as a share of that size."""

WORKING_BYTES = 1e9
"""Memory of Python, buffers and a small key-value cache, in addition to the weights."""

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
    models = _listed()
    if as_json:
        print(json.dumps(models, indent=2))
        return
    rows = [("NAME", "PARAMETERS", "DOWNLOAD", "FITS", "HERE", "LICENCE", "")]
    for model in models:
        about = model["about"] if model["runs"] else f"{model['about']} (not runnable yet)"
        sizes = [size_text(size) if size else "" for size in (model["download_bytes"], model["bytes_here"])]
        fits = "yes" if model["fits"] else "no"
        rows.append((model["name"], model["parameters"], sizes[0], fits, sizes[1], model["licence"], about))
    print_table(rows)
    print(f"\nFITS: into the {size_text(machine.total_memory())} of memory of this machine", file=sys.stderr)


def _listed() -> list[dict[str, Any]]:
    """Returns facts about every model of the catalogue, then about the others in the cache; an unknown size is 0."""
    here = {model.ref: model for model in cache.stored()}
    models = []
    for entry in catalogue().values():
        model, place = here.pop(entry.ref, None), parse(entry.name)
        size = place.stat().st_size if isinstance(place, Path) else model.size if model else 0
        models.append(
            {
                "name": entry.name,
                "parameters": _parameters(entry),
                "download_bytes": int(entry.gigabytes * 1e9),
                "fits": _fits(size or entry.gigabytes * 1e9),
                "bytes_here": size,
                "licence": entry.licence,
                "about": entry.about,
                "runs": entry.runs,
            }
        )
    return models + [
        {
            "name": model.ref,
            "parameters": "",
            "download_bytes": 0,
            "fits": _fits(model.size),
            "bytes_here": model.size,
            "licence": model.licence or "",
            "about": "",
            "runs": True,
        }
        for model in here.values()
    ]


def _fits(size: float) -> bool:
    """Returns whether a model with ``size`` bytes of weights fits into this machine's memory."""
    return size * (1 + PACKING_SHARE) + WORKING_BYTES <= machine.total_memory()


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
        facts["path"] = f"not on this machine; fetch it with: freedive pull {model}"
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
