"""Downloads a model inside a Python wheel with pip, so that the user's index, mirror and proxy settings apply."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from freedive.disk import settle
from freedive.errors import NotFound, Unavailable, UserError
from freedive.hub.cache import FILES, PARTIAL, StoredFile
from freedive.hub.download import CHUNK_BYTES, check, digest, shown
from freedive.hub.download_limits import DownloadLimits, num_bytes

STDERR = 2
"""File descriptor of standard error; in a notebook, sys.stderr is not a file."""
POLL_S = 0.5
"""Seconds between checks of the bytes that pip has downloaded."""
MAX_S = 3600.0
"""Maximum duration of pip in seconds."""


def fetch_from_wheel(
    requirement: str, member: str, sha256: str | None, folder: Path, limits: DownloadLimits
) -> StoredFile:
    """Downloads the wheel ``requirement`` ("package==version") and extracts its file ``member`` into ``folder``.

    The wheel is deleted. Raises UserError if that fails.
    """
    staging = folder / PARTIAL
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir(parents=True)
    try:
        room = limits.available_bytes(folder)
        _pip_download(requirement, staging, room, limits.check)
        room -= sum(path.stat().st_size for path in staging.glob("*.whl"))
        return _extract(next(staging.glob("*.whl")), member, sha256, folder, room)
    finally:
        shutil.rmtree(staging)


def _pip_download(requirement: str, into: Path, room: float, check: Callable[[], None]) -> None:
    """Runs ``pip download`` into the folder ``into``, where all its files together may take ``room`` bytes.

    The progress of pip goes to standard error, its errors into the exception. The option ``-P`` prevents the import of
    another pip from the current folder.
    """
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(into), requirement]
    ends_at = time.monotonic() + MAX_S
    with (
        tempfile.TemporaryFile("w+", dir=into, errors="replace") as complaints,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=STDERR, stderr=complaints, env=os.environ | {"TMPDIR": str(into)}
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                check()
                if num_bytes(into) > room:
                    raise Unavailable(f"{requirement} is larger than the free space", "Free some space")
                if time.monotonic() > ends_at:
                    raise Unavailable(
                        f"{requirement} was not downloaded within {MAX_S / 60:.0f} minutes", "Try again later"
                    )
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(POLL_S)
        except BaseException:
            pip.kill()
            raise
        if pip.returncode:
            complaints.seek(0)
            raise _pip_error(requirement, complaints.read().splitlines())


def _pip_error(requirement: str, complaints: Iterable[str]) -> UserError:
    text = "\n".join(complaints)
    if "No module named pip" in text:
        return UserError(f"{requirement} is fetched with pip, which is missing", f"Run {sys.executable} -m ensurepip")
    if "No space left" in text:
        return Unavailable(
            f"The disk is full: {requirement} did not fit", "Free some space, or set FREEDIVE_HOME elsewhere"
        )
    if any(sign in text for sign in ("NewConnectionError", "ConnectTimeout", "ProxyError", "NameResolutionError")):
        return Unavailable(f"{requirement} cannot be fetched: no connection", "Check the network and pip's settings")
    if "No matching distribution" in text:
        return NotFound(f"pip finds no {requirement}", "Check the name, the version and pip's index settings")
    last = next((line for line in reversed(text.splitlines()) if line.startswith("ERROR")), "pip failed")
    reason = shown(last.removeprefix("ERROR: "))
    return Unavailable(f"{requirement} cannot be fetched: {reason}", "Check pip's settings")


def _extract(wheel: Path, member: str, sha256: str | None, folder: Path, room: float) -> StoredFile:
    """Extracts ``member`` and verifies it.

    The announced size is checked against ``room``, because zipfile never reads more bytes than announced.
    """
    target, partial = folder / FILES / member, wheel.with_suffix(".member")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            if archive.getinfo(member).file_size > room:
                what = f"{member} has {archive.getinfo(member).file_size / 1e9:.1f} GB, more than the free space"
                raise Unavailable(what, "Free some space")
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK_BYTES)
    except KeyError:
        raise NotFound(f"{wheel.name} has no file {member}", "Check the path inside the wheel") from None
    except zipfile.BadZipFile as error:
        raise Unavailable(
            f"{wheel.name} is damaged after the download: {error}", "It was deleted; fetch it again"
        ) from None
    stored = StoredFile(member, partial.stat().st_size, digest(partial))
    check(stored, None, sha256, partial)
    settle(partial, target)
    return stored
