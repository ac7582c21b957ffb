"""What went wrong, in words a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can cause and mend: says what is wrong and what to do, on one line.

    ``what`` names the fault, ``remedy`` the next step. The command line prints it and exits with 1; the server
    answers with :attr:`status`.
    """

    status = 400

    def __init__(self, what: str, remedy: str = "", *, param: str | None = None) -> None:
        self.what = what
        self.remedy = remedy
        self.param = param
        super().__init__(f"{what}. {remedy}" if remedy else what)


class ContextLengthExceeded(UserError):
    """A prompt that leaves no room for an answer in the model's context."""

    code = "context_length_exceeded"


class TemplateRefusal(UserError):
    """Messages that a model's chat template does not take."""


class NotFound(UserError):
    """A model, file or route that does not exist."""

    status = 404


class Overloaded(UserError):
    """The server is at its limit now; the same request may succeed later."""

    status = 429


class Unavailable(UserError):
    """Something outside this process is missing: the network, disk space, a port."""

    status = 503


class Forbidden(UserError):
    """Something that the one who asks has no right to."""

    status = 403
