"""``freedive serve [MODEL...]``: models over HTTP, with a chat page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import freedive
from freedive.commands.flags import REFERENCE, Values, settings
from freedive.config import EngineConfig, ServerConfig, load
from freedive.server import app


@settings(server=ServerConfig, engine=EngineConfig)
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help=f"{REFERENCE} (default smollm2)")
    ] = None,
    *,
    server: Values,
    engine: Values,
) -> None:
    where, how = load(ServerConfig, server), load(EngineConfig, engine)
    app.check_port(where.host, where.port)  # before models are loaded for nothing
    app.serve([freedive.load(model, **asdict(how)) for model in models or ["smollm2"]], where)
