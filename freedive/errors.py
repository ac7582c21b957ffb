"""Errors that a user can cause and correct. Every other exception is a defect of freedive.

::

    UserError
    ├── ContextLengthExceeded
    ├── TemplateRefusal
    ├── NotKept                   a schema that a constraint cannot enforce (text/schema/rewrite.py)
    ├── DamagedFile               a model file (files.py)
    ├── DamagedKeys               the key file (server/keys.py)
    ├── NotFound
    │   └── ThreadNotFound        (server/anthropic/fields.py)
    ├── Forbidden
    │   └── ForeignPage           (server/origins.py)
    ├── Overloaded
    │   ├── RateLimited           (server/rate_limits.py)
    │   └── LoadedJustNow         (server/models.py)
    ├── Unavailable
    │   └── UnreadableWeights     (model/batch.py)
    │       └── ChangedWeights    (model/batch.py)
    ├── Unauthorized              requests (server/http_errors.py)
    ├── BodyTooLarge
    ├── BodyTooSlow
    ├── EncodedBody
    └── UnsupportedMediaType
"""

from __future__ import annotations


class UserError(Exception):
    """An error that a user can cause and correct; its message says in one line what is wrong and what to do.

    ``what`` is a sentence that describes the error, ``remedy`` an imperative sentence for the next step. Both begin
    with an upper-case letter, unless they begin with the name of a field, flag or file, and have no full stop at the
    end. The command line prints both and exits with 1. The server reports them with the HTTP status that
    ``server/http_errors.py`` gives the class.
    """

    def __init__(self, what: str, remedy: str = "", *, param: str | None = None) -> None:
        self.what = what
        self.remedy = remedy
        self.param = param
        super().__init__(f"{what}. {remedy}" if remedy else what)


class ContextLengthExceeded(UserError):
    """A prompt that leaves no tokens for an answer in the model's context."""

    code = "context_length_exceeded"


class TemplateRefusal(UserError):
    """Messages that a model's chat template refuses."""


class NotFound(UserError):
    """A model, file or route that does not exist."""


class Overloaded(UserError):
    """The server has reached a limit; the same request may succeed later."""


class Unavailable(UserError):
    """A resource outside this process is missing: the network, disk space, a port."""


class Forbidden(UserError):
    """An action that the caller has no right to."""
