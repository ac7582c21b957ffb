"""The rights that the page's work on models needs."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request

from freedive.server.keys import Key
from freedive.server.library.jobs import Kind

RIGHTS: Mapping[Kind, str] = {"download": "pull", "quantize": "files", "finetune": "files"}
"""The right that each kind of job needs."""


def key_of(request: Request) -> Key:
    """Returns the key of the request's caller."""
    key: Key = request.state.record.key
    return key
