"""Authentication: admits or refuses requests, and determines their tenant."""

from __future__ import annotations

import ipaddress
import re
from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from freedive.config import ServerConfig
from freedive.errors import Forbidden, Unavailable
from freedive.server.http_errors import Unauthorized
from freedive.server.keys import Key, Keys, nobody
from freedive.server.origins import ForeignPage, Origins
from freedive.server.rate_limits import RateLimits

SERVICE_WORKER = "/service-worker.js"
"""The page's service worker, whose path must be above all that it may serve."""

SESSION = "/app/session"
"""The path at which the page exchanges a key for a cookie."""

COOKIE = "freedive_key"
"""The cookie that holds the key of the page, out of reach of its scripts."""

OPEN = frozenset({"/", "/stats", "/health", "/docs", "/openapi.json", SERVICE_WORKER, SESSION})
"""Paths that need no key, like all paths under /static/: the pages ask the user for the key themselves."""

PRIVATE = "/app/"
"""The paths that only the server's own page uses, not even pages of allowed origins."""


class Auth:
    """Admits requests with a valid key; without keys it admits all requests, on loopback except from foreign pages."""

    def __init__(self, keys: Keys | None, config: ServerConfig) -> None:
        self._keys = keys
        self._rate_limits = RateLimits()
        self._names = config.host_names
        self._is_local = is_loopback(config.host)
        pull = ["pull"] if self._is_local or config.pull else []
        self._anybody = nobody("manage", *pull, *(["files"] if self._is_local else []))
        self.origins = Origins(config.allowed_origins)
        self.closing = False

    @property
    def locked(self) -> bool:
        """Whether requests need a key now."""
        if self._keys is None:
            return False
        self._keys.reload_if_changed()
        return self._keys.required

    def admit(self, path: str, headers: Headers) -> Key:
        """Returns the caller's key; if no key is needed, an anonymous key with the rights that are open to everybody.

        Raises Unauthorized, Forbidden, and Unavailable when the server is shutting down.
        """
        if self.closing:
            raise Unavailable("The server is shutting down", "Send the request again later")
        if path.startswith(PRIVATE):
            self._refuse_other_pages(headers)
        if self.locked:
            is_open = path in OPEN or path.startswith("/static/")
            secret = presented(headers) or self._secret_of_page(path, headers)
            return self._key_or_nobody(secret) if is_open else self.holder(secret)
        if self._is_local:
            self._refuse_foreign_pages(headers)
        return self._anybody

    def track(self, key: Key, path: str = "", method: str = "POST") -> AbstractContextManager[None]:
        """Counts a POST request against the limits of ``key`` while the block runs. Raises RateLimited.

        Requests of the page for its own data do not count: each of its answers is one request, however long it runs.
        """
        counts = method == "POST" and not path.startswith(PRIVATE)
        return self._rate_limits.track(key) if counts else nullcontext()

    def holder(self, secret: str) -> Key:
        """Returns the key with this secret. Raises Unauthorized, and Unavailable while the keys cannot be read."""
        assert self._keys
        if not secret:
            raise Unauthorized("This server requires a key", "Send the header Authorization: Bearer KEY")
        if key := self._keys.holder(secret):
            return key
        raise Unauthorized("The key is not valid on this server", "Create one with: freedive keys create NAME")

    def _key_or_nobody(self, secret: str) -> Key:
        try:
            return self.holder(secret)
        except (Unauthorized, Unavailable):
            return nobody()

    def _secret_of_page(self, path: str, headers: Headers) -> str:
        """Returns the key in the page's cookie, "" unless the request comes from a page of this very origin.

        Browsers send a cookie whichever page makes the request. SameSite keeps back those of other sites, but the pages
        of another port of this host are of the same site. Requests below /app/ that say nothing about their page are
        accepted: over HTTP to another machine, browsers say nothing about a page that reads from its own server.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            is_own = site == "same-origin" or (site == "none" and path.startswith(PRIVATE))
        elif origin is not None:
            is_own = origin.lower().partition("://")[2] == headers.get("host", "").lower() != ""
        else:
            is_own = path.startswith(PRIVATE)
        return cookie_parser(headers.get("cookie", "")).get(COOKIE, "") if is_own else ""

    def _refuse_other_pages(self, headers: Headers) -> None:
        """Raises Forbidden for requests of any page but the server's own, also with a key and from allowed origins.

        Browsers say in Sec-Fetch-Site whose page sends a request, or follows a link ("none": the user typed it). A
        proxy that changes the Host header does not change that. Over HTTP to another machine they do not say it; then
        only pages of allowed origins get past the preflight, so these are refused by their Origin.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is None and origin is not None and not self._is_own(origin, headers):
            site = "cross-site" if self._is_local or self.origins.allow(origin) else None
        if site not in (None, "same-origin", "none"):
            raise Forbidden("Pages of other origins may not use this server's conversations", "Open the server's page")

    def _is_own(self, origin: str, headers: Headers) -> bool:
        """Whether ``origin`` is that of this server's pages."""
        _, _, authority = origin.lower().partition("://")
        return authority == headers.get("host", "localhost").lower() or _name(authority) in self._names

    def _refuse_foreign_pages(self, headers: Headers) -> None:
        """Raises Forbidden for requests of web pages from other origins, also after DNS rebinding.

        If a page's host name is rebound to this machine, its requests are same-origin; only the Host header shows it.
        """
        host = headers.get("host", "localhost").lower()
        name = _name(host)
        if not (is_loopback(name) or _is_address(name) or name in self._names):
            raise Forbidden(f"This server does not have the name {name!r}", "Use localhost, or serve with --hosts NAME")
        origin = headers.get("origin", f"http://{host}").lower()
        if not self._is_own(origin, headers) and not self.origins.allow(origin):
            raise ForeignPage(origin)


def presented(headers: Headers) -> str:
    """Returns the key in the headers that OpenAI's, Anthropic's or Azure's clients send, "" if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or headers.get("api-key") or ""


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _name(authority: str) -> str:
    """Returns the host of ``host:port``, "" if ``authority`` does not have this form."""
    match = re.fullmatch(r"(?:\[(.*)\]|([^:\[\]]*))(?::\d*)?", authority)
    return (match[1] or match[2]) if match else ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
