"""Routes of the chat page: the HTML page, its static files and its service worker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined

from freedive.json_object import Json
from freedive.server.auth import SERVICE_WORKER, Auth
from freedive.server.routing import APIRouter
from freedive.server.service import Service

STATIC = Path(__file__).parent / "static"
THEMES = ("auto", "light", "dark")


def router(service: Service, auth: Auth) -> APIRouter:
    """Returns the routes of the chat page."""
    routes = APIRouter(include_in_schema=False)
    translations: dict[str, dict[str, str]] = json.loads((files(__package__) / "translations.json").read_text("utf-8"))
    environment = Environment(
        loader=PackageLoader("freedive.server.page", "."), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("page.html")

    @routes.get("/")
    async def page(request: Request) -> HTMLResponse:
        cookies = request.cookies
        language = choose_language(cookies.get("lang", ""), request.headers.get("accept-language", ""), translations)
        other = next(code for code in translations if code != language)
        html = template.render(
            language=language,
            word=translations[language],
            other={"code": other, "name": translations[other]["language"]},
            theme=cookies["theme"] if cookies.get("theme") in THEMES else THEMES[0],
            closed=cookies.get("bar") == "closed",
            experts_open=cookies.get("experts") == "open",
            names=[] if auth.locked else list(service.models.slots),
        )
        return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Vary": "Accept-Language, Cookie"})

    @routes.get("/app/models")
    async def models() -> Json:
        return {"states": {name: slot.state for name, slot in service.models.slots.items()}}

    @routes.get(SERVICE_WORKER)
    async def service_worker() -> FileResponse:
        headers = {"Cache-Control": "no-cache"}
        return FileResponse(STATIC / "service-worker.js", media_type="text/javascript", headers=headers)

    return routes


def static_files() -> StaticFiles:
    """Returns the application that serves style sheets and scripts under /static."""
    return StaticFiles(directory=STATIC)


def choose_language(cookie: str, accepted: str, languages: Sequence[str] | dict[str, Any]) -> str:
    """Returns the cookie's language, else the first of Accept-Language that is in ``languages``, else English."""
    wanted = [cookie, *(part.partition(";")[0].strip().partition("-")[0].lower() for part in accepted.split(","))]
    return next((language for language in wanted if language in languages), "en")
