"""The HTTP application, and the process that serves it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

import freedive.chat.page as chat
from freedive.config import ServerConfig
from freedive.errors import Unavailable, UserError
from freedive.server import docs, openai, problems
from freedive.server.model import Model

SHUTDOWN_S = 2
"""How long answers under way may go on after Ctrl-C."""


def create_app(models: Sequence[Model]) -> FastAPI:
    """All routes over ``models``, of which the first is the page's default."""
    app = FastAPI(title="freedive", docs_url=None, redoc_url=None)
    problems.add_handlers(app)
    app.add_middleware(problems.Gate)

    @app.get("/health", tags=["server"], summary="Whether the server is up, and how busy")
    async def health() -> dict[str, Any]:
        stats = {model.name: dataclasses.asdict(model.engine.stats()) for model in models}
        return {"status": "ok", "models": stats}

    app.include_router(openai.router(models))
    app.include_router(docs.router(app, models[0].name))
    app.include_router(chat.router(models))
    app.mount("/static", chat.static_files(), name="static")
    return app


def check_port(host: str, port: int) -> None:
    """Raises UserError when nobody could listen there; to be asked before anything heavy is loaded."""
    listen(host, port).close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises UserError."""
    where = f"port {port} on {host}"
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise Unavailable(f"{where} is in use", "Choose another with --port") from error
            case errno.EACCES:
                raise UserError(f"{where} needs more rights", "Choose a port above 1023 with --port") from error
            case _:
                raise UserError(f"cannot listen at {where} ({error})", "Check --host and --port") from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol; without it every answer would
    # wait 40 ms for an acknowledgement of its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(models: Sequence[Model], config: ServerConfig) -> None:
    """Serve until Ctrl-C. Prints the address on standard error. Raises UserError when the port is taken."""
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = ", ".join(model.name for model in models)
    print(f"freedive serves {names}: chat at {url}, API at {url}/v1 (Ctrl-C stops)", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server(create_app(models)).run(sockets=[listener])


def server(app: FastAPI) -> uvicorn.Server:
    """Only our own log speaks: the gate reports every failure once, with the request's id."""
    return uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, log_level="critical", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S
        )
    )
