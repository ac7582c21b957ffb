"""Whether another process has the same database open."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from freedive.errors import UserError


class Presence:
    """A mark that this process uses the file ``path``, in ``path``.lock; the kernel removes it with the process.

    ``alone`` says whether no other process had marked it. While the block runs, other processes wait for their marks
    if this one is alone; afterwards the mark stays until :meth:`close`. Raises UserError if it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        lock = path.with_name(f"{path.name}.lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UserError(f"{lock} cannot be used ({error})", "Move it away, or set FREEDIVE_HOME") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except BlockingIOError:
            self.alone = False
        except OSError as error:
            self.close()
            raise UserError(f"{lock} cannot be locked ({error})", "Set FREEDIVE_HOME to another disk") from error

    def __enter__(self) -> Presence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            fcntl.flock(self._file, fcntl.LOCK_SH)
        else:
            self.close()

    def close(self) -> None:
        """Removes the mark."""
        os.close(self._file)
