"""The HTTP application, and the process that serves it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from freedive.config import ServerConfig
from freedive.errors import Unavailable, UserError
from freedive.server import api_errors, docs, history, kept_requests, metrics, openapi, stats
from freedive.server.answers import routes as answers_routes
from freedive.server.answers.answers import Answers
from freedive.server.anthropic.models import ByVersion
from freedive.server.apis import Api, apis
from freedive.server.auth import Auth, is_loopback
from freedive.server.body import Bodies
from freedive.server.conversations import routes as conversations_routes
from freedive.server.conversations.chats import Chats
from freedive.server.edge import EdgeMiddleware
from freedive.server.finetunes import routes as finetunes_routes
from freedive.server.finetunes.finetuning import Finetuning, NoFinetuning
from freedive.server.kept_requests import KeptRequests
from freedive.server.keys import Keys
from freedive.server.library import routes as library_routes
from freedive.server.library.jobs import Jobs
from freedive.server.library.library import Library, NoLibrary
from freedive.server.library.pulls import Fetch, Pulls, no_fetch
from freedive.server.log import line_log
from freedive.server.model import Model
from freedive.server.models import Models
from freedive.server.openai.responses.store import open_store
from freedive.server.origins import CrossOrigin
from freedive.server.page import routes as page
from freedive.server.page import session
from freedive.server.paths import Paths
from freedive.server.request_record import Observer
from freedive.server.service import Service
from freedive.server.tracing import tracing
from freedive.server.transport import Connection, Server

SHUTDOWN_S = 2
"""Seconds that running answers may continue after Ctrl-C."""

DEFAULTS = ServerConfig()
"""The default settings of a server."""

NO_LIBRARY, NO_FINETUNING = NoLibrary(), NoFinetuning()
"""The library and the fine-tuning of servers of given models."""


def create_app(
    models: Models,
    config: ServerConfig = DEFAULTS,
    keys: Keys | None = None,
    observers: Sequence[Observer] = (),
    *,
    fetch: Fetch = no_fetch,
    library: Library = NO_LIBRARY,
    finetuning: Finetuning = NO_FINETUNING,
    stored_responses: Path | None = None,
    conversations: Path | None = None,
) -> FastAPI:
    """Returns the HTTP application that serves ``models``; the first of them is the chat page's default.

    If ``keys`` is None, requests need no key. ``observers`` receive the record of each finished request, like the
    server's own metrics. ``fetch`` downloads a model for a client, ``library`` is what this machine has, and
    ``finetuning`` makes models of users' files. ``stored_responses`` and ``conversations`` are the files of stored
    responses and of the page's conversations; those that are None are kept in memory. ``app.state.auth`` authenticates
    requests, and ``app.state.chats`` holds the conversations.
    """
    service = Service(models, keeps_requests=config.keep_requests > 0)
    store, kept = open_store(stored_responses), KeptRequests(config.keep_requests, keys)
    chats, auth = Chats(conversations, int(config.conversations_gb * 1e9)), Auth(keys, config)
    measured, counted, sampled = metrics.Metrics(models), stats.Stats(), history.History(models)
    watching: tuple[Observer, ...] = (measured, counted, sampled, kept, *observers)
    answers = Answers(chats, service, auth, watching)
    pulls, jobs = Pulls(models, fetch), Jobs()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with contextlib.closing(store), contextlib.closing(chats):
            async with models.living(), answers.living(), jobs.living(), sampled.living():
                yield

    app = FastAPI(title="freedive", docs_url=None, redoc_url=None, lifespan=lifespan)
    api_errors.add_handlers(app)
    app.state.auth = auth
    app.state.chats = chats
    app.state.bodies = bodies = Bodies(int(config.max_body_mb * (1 << 20)))
    app.add_middleware(ByVersion)
    app.add_middleware(EdgeMiddleware, auth=auth, observers=watching, bodies=bodies)
    app.add_middleware(Paths)
    app.add_middleware(CrossOrigin, origins=auth.origins)  # the outermost, so that pages can read errors too

    _add_health(app, models)
    _include_apis(app, apis(service, store, pulls))
    app.include_router(metrics.router(measured))
    app.include_router(stats.router(counted, models))
    app.include_router(history.router(sampled))
    app.include_router(kept_requests.router(kept))
    app.include_router(docs.router(app, "MODEL" if auth.locked else next(iter(models.slots))))
    chat = conversations_routes.router(chats, answers.rendered, service.count), answers_routes.router(answers)
    of_models = library_routes.router(models, library, pulls, jobs, auth)
    tuning = finetunes_routes.router(models, library, jobs, finetuning, auth)
    for router in (page.router(service, auth), session.router(auth), of_models, tuning, *chat):
        app.include_router(router)
    app.mount("/static", page.static_files(), name="static")
    openapi.describe_routes(app)
    return app


def _include_apis(app: FastAPI, offered: Sequence[Api]) -> None:
    for api in offered:
        for prefix in api.prefixes:
            in_schema = prefix == api.prefixes[0]
            for router in api.routers:
                app.include_router(router, prefix=prefix, tags=[api.name], include_in_schema=in_schema)


def _add_health(app: FastAPI, models: Models) -> None:
    @app.get("/health", tags=["server"], summary="Whether the server works, and its load")
    async def health(request: Request, response: Response) -> dict[str, Any]:
        troubles = models.troubles
        response.status_code = 503 if troubles else 200
        status = {"status": "failing" if troubles else "ok"}
        if "manage" not in request.state.record.key.may:  # statistics reveal other tenants' use
            return status
        stats = {model.name: dataclasses.asdict(model.engine.stats()) for model in models.loaded}
        return status | {"models": stats} | ({"troubles": troubles} if troubles else {})


def check_keys(config: ServerConfig) -> Keys:
    """Returns the keys of this machine.

    Raises UserError if the key file is damaged, or if ``config`` would let other machines or web pages use the server
    without a key.
    """
    keys = Keys()
    if not (keys.required or config.insecure or is_loopback(config.host)):
        what = f"Everybody who reaches {config.host} could send requests, because there are no keys"
        raise UserError(what, "Create one with: freedive keys create NAME, or use --insecure")
    if "*" in config.allowed_origins and not (keys.required or config.insecure):
        what = "Every web page that is open on this machine could use this server, because there are no keys"
        raise UserError(what, "Name the origins, or create a key with: freedive keys create NAME", param="origins")
    return keys


def check_port(host: str, port: int) -> None:
    """Raises UserError if the port cannot be used; call this before a model is loaded."""
    listen(host, port).close()


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; port 0 takes any free port. Raises UserError if the port cannot be used."""
    where = f"Port {port} on {host}"
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise Unavailable(f"{where} is in use", "Choose another with --port") from error
            case errno.EACCES:
                raise UserError(f"{where} needs more rights", "Choose a port above 1023 with --port") from error
            case _:
                raise UserError(f"{where} cannot be used ({error})", "Check --host and --port") from error
    # Connections inherit this option. asyncio sets it only on sockets that name their protocol. Without it every answer
    # would wait 40 ms for the acknowledgement of its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(models: Models, config: ServerConfig, keys: Keys | None = None, **outside: Any) -> None:
    """Serves ``models`` until Ctrl-C or SIGTERM; ``outside`` holds further arguments of :func:`create_app`.

    Prints the address on standard error. Raises UserError if the port cannot be used.
    """
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    app = create_app(models, config, keys, _observers(config), **outside)
    names = ", ".join(f"{name}{_on_disk(slot.model)}" for name, slot in models.slots.items())
    print(f"freedive serves {names}: chat at {url}, API at {url}/v1 (Ctrl-C stops)", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server(app, config).run(sockets=[listener])


def _on_disk(model: Model | None) -> str:
    """Returns how far the memory of a model's experts is filled, in brackets, or "" if none stay on disk."""
    if not (model and (cache := model.expert_cache())):
        return ""
    used, total = (cache.numbers[name] / 1e9 for name in ("used_bytes", "slots_bytes"))
    return f" (experts on disk; {used:.2f} of {total:.2f} GB of memory for them filled, /v1/stats tells how it goes on)"


def _observers(config: ServerConfig) -> list[Observer]:
    logs = [] if config.log == "off" else [line_log(config.log, sys.stderr)]
    return [observer for observer in (*logs, tracing()) if observer]


def server(app: FastAPI, config: ServerConfig = DEFAULTS) -> Server:
    """Returns the uvicorn server of ``app``, without uvicorn's log: EdgeMiddleware logs every failure once."""

    def close() -> None:
        app.state.auth.closing = True

    protocol: Any = partial(Connection, stall_s=config.stall_timeout, resting={})
    uvicorn_config = uvicorn.Config(
        app,
        http=protocol,
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    return Server(uvicorn_config, {SIGINT: SHUTDOWN_S, SIGTERM: config.drain}, close)
