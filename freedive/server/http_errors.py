"""Errors of HTTP requests, and the HTTP status of every error."""

from __future__ import annotations

from freedive.errors import Forbidden, NotFound, Overloaded, Unavailable, UserError


class EncodedBody(UserError):
    """A request body that is compressed."""


class BodyTooLarge(UserError):
    """A request body beyond the limit."""


class UnsupportedMediaType(UserError):
    """A request body that is not JSON."""


class BodyTooSlow(UserError):
    """A request body that does not arrive in time."""


class Unauthorized(UserError):
    """A request without a key, or with an unknown one."""


STATUSES: dict[type[UserError], int] = {
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    BodyTooSlow: 408,
    BodyTooLarge: 413,
    EncodedBody: 415,
    UnsupportedMediaType: 415,
    Overloaded: 429,
    Unavailable: 503,
    UserError: 400,
}
"""HTTP status by class of error; a class that is not listed has the status of its nearest base class."""


def status_of(error: UserError) -> int:
    """Returns the HTTP status that reports ``error``."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
