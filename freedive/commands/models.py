"""``freedive pull | list | show | rm``: the models of the catalogue and of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freedive.errors import NotFound
from freedive.hub import cache
from freedive.hub.catalogue import Entry, catalogue, entry_for
from freedive.hub.sources import Address, parse
from freedive.hub.sources import pull as fetch

REFERENCE = "A name (see `freedive list`), hf:owner/name[/file], modelscope:owner/name[/file] or a path."

Reference = Annotated[str, typer.Argument(metavar="MODEL", help=REFERENCE)]
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
        model = here.pop(entry.ref, None)
        size = size_text(model.size) if model else ""
        about = entry.about if entry.runs else f"{entry.about} (not runnable yet)"
        rows.append((entry.name, _parameters(entry), size, entry.licence, about))
    rows += [(model.ref, "", size_text(model.size), model.licence or "", "") for model in here.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def show(model: Reference) -> None:
    place, entry = parse(model), entry_for(model)
    stored = cache.find(str(place)) if isinstance(place, Address) else None
    facts = {"reference": str(place)}
    if entry:
        facts |= {"name": entry.name, "about": entry.about, "family": entry.family, "parameters": _parameters(entry)}
        facts |= {"download": f"about {entry.gigabytes:g} GB", "licence": entry.licence}
    if stored:
        facts |= {
            "licence": stored.licence or "unknown",
            "revision": stored.revision or "unknown",
            "fetched": stored.date,
        }
        facts |= {"path": str(stored.path), "size": size_text(stored.size)}
        facts |= {f"  {file.path}": f"{size_text(file.size)}  sha256 {file.sha256}" for file in stored.files}
    elif isinstance(place, Address):
        facts["path"] = f"not on this machine; fetch it with: freedive pull {model}"
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name.ljust(width)}  {text}")


def rm(models: References) -> None:
    for ref in models:
        place = parse(ref)
        freed = cache.remove_packed(place) if isinstance(place, Path) else cache.remove(str(place))
        if not freed:
            raise NotFound(f"There is nothing of {ref} in the cache", "See what is with: freedive list")
        print(f"{ref}: {size_text(freed)} freed")


def _parameters(entry: Entry) -> str:
    total = f"{entry.total:g}B" if entry.total >= 1 else f"{entry.total * 1000:g}M"
    return total if entry.active == entry.total else f"{total}, {entry.active:g}B active"


def size_text(size: int) -> str:
    """Bytes as a person reads them, in decimal units as disks and hubs count."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
