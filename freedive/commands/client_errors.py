"""Errors as clients of a server may see them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TypeVar

from freedive.errors import UserError
from freedive.hub.cache import home

FOLDERS = re.compile(r"(?<![\w:/.])(?:~|[.]{1,2})?/(?=\S)(?:[^\s/'\"]+/)*")
"""The folders before a file name in a message."""

T = TypeVar("T")


def private(work: Callable[[], T]) -> Callable[[], T]:
    """Wraps ``work`` for clients: its errors omit folders of this machine, and are printed in full to
    standard error."""

    def run() -> T:
        try:
            return work()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            error.what, error.remedy = map(_without_folders, (error.what, error.remedy))
            error.args = (f"{error.what}. {error.remedy}" if error.remedy else error.what,)
            raise

    return run


def _without_folders(text: str) -> str:
    return FOLDERS.sub("", text.replace(str(home()), ""))
