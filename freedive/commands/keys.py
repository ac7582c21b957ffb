"""``freedive keys create | list | revoke``: manages the API keys of this machine's server."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from freedive.commands.formatting import print_table
from freedive.config import listed
from freedive.errors import UserError
from freedive.server import keys as store

Action = Literal["create", "list", "revoke"]


def keys(
    action: Annotated[Action, typer.Argument(metavar="create|list|revoke", help="What to do.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Whose key; to revoke it, its id will do.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests that it may make in a minute; default: any number.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Requests that it may have under way at once; default: any number.")
    ] = None,
    may: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RIGHT,...",
            help="What it may do besides asking: pull (fetch models), manage (unload and "
            "pin models, see what all callers use). It may be repeated.",
        ),
    ] = None,
) -> None:
    if action == "list":
        _list()
    elif name is None:
        raise UserError(f"{action} needs a name", f"Say whose key: freedive keys {action} NAME")
    elif action == "create":
        print(store.create(name, requests_per_minute, max_running, listed(*may or ())))
        print("This is the only time that the key is shown.", file=sys.stderr)
    else:
        print(f"The key of {store.revoke(name).name} is revoked")
        if not store.read_keys(store.key_file()):
            remedy = f"To serve without keys again, delete {store.key_file()} and start the server anew"
            print(f"No key is left, and a server still asks for one. {remedy}.", file=sys.stderr)


def _list() -> None:
    rows: list[tuple[str, ...]] = [("NAME", "ID", "ENDS IN", "CREATED", "PER MINUTE", "AT ONCE", "MAY")]
    for key in store.read_keys(store.key_file()):
        limits = (str(limit or "") for limit in (key.requests_per_minute, key.max_running))
        rows.append((key.name, key.id, key.hint, key.created, *limits, ", ".join(("ask", *key.may))))
    print_table(rows)
