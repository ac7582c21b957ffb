"""The page's session: a key in a cookie that scripts cannot read."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse

from freedive.json_object import Json
from freedive.server.auth import COOKIE, SESSION, Auth
from freedive.server.conversations.records import Label
from freedive.server.request_body import RequestBody
from freedive.server.routing import APIRouter

MAX_AGE_S = 180 * 86_400
"""Seconds that a browser keeps the key."""


class SessionRequest(RequestBody):
    """A key that the user entered."""

    key: Label


def router(auth: Auth) -> APIRouter:
    """Returns the routes that begin and end a session."""
    routes = APIRouter(include_in_schema=False)

    @routes.post(SESSION, response_model=None)
    async def begin(body: SessionRequest, request: Request) -> JSONResponse:
        if not auth.locked:
            return JSONResponse({"name": ""})
        response = JSONResponse({"name": auth.holder(body.key).name})
        response.set_cookie(COOKIE, body.key, max_age=MAX_AGE_S, **_attributes(request))
        return response

    @routes.delete(SESSION, response_model=None)
    async def end(request: Request) -> JSONResponse:
        response = JSONResponse({"deleted": True})
        response.delete_cookie(COOKIE, **_attributes(request))
        return response

    return routes


def _attributes(request: Request) -> Json:
    return {"path": "/", "httponly": True, "samesite": "strict", "secure": request.url.scheme == "https"}
