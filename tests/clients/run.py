"""Calls every function of a client's script with the server's address: ``python -P run.py SCRIPT URL``.

Prints the results as one JSON object: null, or the error with the function's local variables. -P keeps the scripts,
which are named after their clients, from being imported instead of these.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from types import FunctionType

LOOPBACK = ("127.0.0.1", b"127.0.0.1", None)
MAX_VALUE_LENGTH = 500


class Abroad(BaseException):
    """Raised when a client resolves a foreign host; not an Exception, so that the client cannot catch it."""


def stay_home(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook that allows only local host names."""
    if event == "socket.getaddrinfo" and arguments[0] not in LOOPBACK:
        raise Abroad(arguments[0])


def outcome(check: Callable[[str], None], url: str) -> str | None:
    started = time.monotonic()
    try:
        check(url)
    except (Exception, Abroad) as error:
        return fault(check, error)
    finally:
        print(f"{check.__name__}: {time.monotonic() - started:.2f} s", file=sys.stderr)
    return None


def fault(check: Callable[[str], None], error: BaseException) -> str:
    """Returns the traceback and the local variables of ``check``."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is check.__code__]
    known = [f"{name} = {str(value)[:MAX_VALUE_LENGTH]}\n" for name, value in frames[0].f_locals.items()]
    return "".join(traceback.format_exception(error) + known)


def main(script: str, url: str) -> None:
    sys.addaudithook(stay_home)
    with redirect_stdout(sys.stderr):
        names = runpy.run_path(script)
        own = (
            value for value in names.values() if isinstance(value, FunctionType) and value.__module__ == "<run_path>"
        )
        outcomes = {check.__name__: outcome(check, url) for check in own if not check.__name__.startswith("_")}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
