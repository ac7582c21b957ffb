"""Bodies of the page's requests about models."""

from __future__ import annotations

from freedive.server.conversations.records import Label
from freedive.server.request_body import RequestBody


class ModelRequest(RequestBody):
    """The model that is meant."""

    model: Label


class QuantizeRequest(RequestBody):
    """The model of which a copy is made, and the format of the copy."""

    model: Label
    format: Label
