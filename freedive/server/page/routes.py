"""Routes of the chat page and the page of statistics: HTML, static files and the service worker."""

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

    def page(request: Request, template: str, **values: Any) -> HTMLResponse:
        cookies = request.cookies
        language = choose_language(cookies.get("lang", ""), request.headers.get("accept-language", ""), translations)
        other = next(code for code in translations if code != language)
        html = environment.get_template(template).render(
            language=language,
            word=translations[language],
            other={"code": other, "name": translations[other]["language"]},
            theme=cookies["theme"] if cookies.get("theme") in THEMES else THEMES[0],
            **values,
        )
        return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Vary": "Accept-Language, Cookie"})

    @routes.get("/")
    async def chat(request: Request) -> HTMLResponse:
        return page(
            request,
            "page.html",
            closed=request.cookies.get("bar") == "closed",
            experts_open=request.cookies.get("experts") == "open",
            names=[] if auth.locked else list(service.models.slots),
        )

    @routes.get("/stats")
    async def statistics(request: Request) -> HTMLResponse:
        return page(request, "stats.html")

    @routes.get("/app/models")
    async def models(request: Request) -> Json:
        states = {name: slot.state for name, slot in service.models.slots.items()}
        return {"states": states, "may": list(request.state.record.key.may)}

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
