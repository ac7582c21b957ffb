"""Makes reads of one file slow, with the permission events of fanotify(7): Linux only, and only as root.

Run as a program, ``slow_disk.py FILE`` lets one read after another pass, each after as many seconds as its standard
input said last. The kernel asks only about files that were opened while it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CONTENT_CLASS, ADD, ACCESS_PERMISSION, ALLOW, WORKING_DIRECTORY = 0x4, 0x1, 0x20000, 0x1, -100
EVENT = struct.Struct("=IBBHQii")


@contextlib.contextmanager
def slow_disk(path: Path) -> Iterator[Callable[[float], None]]:
    """Yields a function that sets how many seconds each read of ``path`` takes from now on, by a file opened in the
    block. At the end of the block, what waits passes. Skips the test where this is not permitted.
    """
    command = [sys.executable, __file__, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        told, heard = process.stdin, process.stdout
        if heard.readline() != "ready\n":
            pytest.skip("this system or user cannot delay reads of a file")

        def delay(seconds: float) -> None:
            print(seconds, file=told, flush=True)
            assert heard.readline() == "ready\n"

        try:
            yield delay
        finally:
            process.kill()


def main(path: str) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    group = library.fanotify_init(CONTENT_CLASS, os.O_RDONLY)
    mask = ctypes.c_uint64(ACCESS_PERMISSION)
    if group < 0 or library.fanotify_mark(group, ADD, mask, WORKING_DIRECTORY, os.fsencode(path)):
        sys.exit(os.strerror(ctypes.get_errno()))
    seconds = 0.0
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([sys.stdin, group], [], [])
        if sys.stdin in readable:
            seconds = float(sys.stdin.readline())
            print("ready", flush=True)
            continue
        for *_, file, _ in EVENT.iter_unpack(os.read(group, EVENT.size)):
            time.sleep(seconds)
            os.write(group, struct.pack("=iI", file, ALLOW))
            os.close(file)


if __name__ == "__main__":
    main(sys.argv[1])
