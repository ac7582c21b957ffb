"""``freedive pull | list | show | rm``: the models of the catalogue and of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freedive.commands.describe import decoder_facts
from freedive.commands.flags import REFERENCE, Reference
from freedive.commands.words import count_text, print_table, size_text
from freedive.errors import NotFound, UserError
from freedive.hub import cache
from freedive.hub.catalogue import Entry, catalogue, entry_for
from freedive.hub.sources import Address, parse
from freedive.hub.sources import pull as fetch

References = Annotated[list[str], typer.Argument(metavar="MODEL...", help=REFERENCE)]


def pull(models: References) -> None:
    for ref in models:
        place, entry = parse(ref), entry_for(ref)
        path = fetch(place).path if isinstance(place, Address) else place
        note = "" if entry is None or entry.runs else f" (freedive cannot run {entry.family} yet)"
        print(f"{ref} is at {path}{note}")


def list_models() -> None:
    rows = [("NAME", "PARAMETERS", "HERE", "LICENCE", "")]
    here = {model.ref: model for model in cache.stored()}
    for entry in catalogue().values():
        model, place = here.pop(entry.ref, None), parse(entry.name)
        size = size_text(place.stat().st_size) if isinstance(place, Path) else size_text(model.size) if model else ""
        about = entry.about if entry.runs else f"{entry.about} (not runnable yet)"
        rows.append((entry.name, _parameters(entry), size, entry.licence, about))
    rows += [(model.ref, "", size_text(model.size), model.licence or "", "") for model in here.values()]
    print_table(rows)


def show(model: Reference) -> None:
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
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name.ljust(width)}  " + text.replace("\n", "\n" + " " * (width + 2)))


def _stored_facts(stored: cache.Stored) -> dict[str, str]:
    """A model may be here that freedive cannot run; then the reason stands for what its decoder is."""
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
