"""Downloads a file over HTTP: resumes it, verifies it, and gives it its final name when it is complete."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from freedive.disk import settle
from freedive.errors import NotFound, Unavailable, UserError
from freedive.hub.cache import FILES, PARTIAL, StoredFile
from freedive.progress import Advance

ATTEMPTS = 5
PAUSE_SECONDS = 0.5
"""Pause before the second attempt in seconds; it doubles before each further attempt."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub: its ``path`` in the repository, its ``size`` in bytes, its ``sha256`` or None if unpublished."""

    path: str
    url: str
    size: int
    sha256: str | None


def client(headers: dict[str, str]) -> httpx.Client:
    """Returns an HTTP client for uncompressed bodies, because compressed ones cannot be checked or resumed."""
    return httpx.Client(headers={"Accept-Encoding": "identity"} | headers, follow_redirects=True, timeout=30)


def download(http: httpx.Client, file: RemoteFile, folder: Path, advance: Advance) -> StoredFile:
    """Downloads ``file`` into the ``folder`` of a model and verifies it; calls ``advance`` with numbers of bytes.

    It never writes more bytes than the hub announced. After a broken connection it resumes the download, also in a
    later call if the hub publishes a SHA-256, which proves that the parts belong together. Raises httpx.HTTPError if
    the download fails, and Unavailable if the file is damaged.
    """
    target = folder / FILES / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.sha256 and target.exists() and digest(target) == file.sha256:
        advance(file.size)
        return StoredFile(file.path, file.size, file.sha256)
    partial = partial_file(folder, file.path)
    partial.parent.mkdir(exist_ok=True)
    if not file.sha256:
        partial.unlink(missing_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        advance(0)  # raises if the download was cancelled
        try:
            _append(http, file, partial, advance)
            break
        except httpx.HTTPError as error:
            if attempt == ATTEMPTS or not _is_temporary(error):
                raise
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        except OSError:  # the disk is full or failing, and the partial file would only take space
            partial.unlink(missing_ok=True)
            raise
    stored = StoredFile(file.path, partial.stat().st_size, digest(partial))
    check(stored, file.size, file.sha256, partial)
    settle(partial, target)
    return stored


def partial_file(folder: Path, path: str) -> Path:
    """Returns the path of the partial download of the file ``path`` of a model in ``folder``."""
    return folder / PARTIAL / hashlib.sha256(path.encode()).hexdigest()


def _append(http: httpx.Client, file: RemoteFile, partial: Path, advance: Advance) -> None:
    """Downloads the missing bytes of ``partial``, or all bytes if the server does not support ranges."""
    with partial.open("ab") as out:
        done = out.tell()
        if done >= file.size:
            done = out.truncate(0)
        with http.stream("GET", file.url, headers={"Range": f"bytes={done}-"} if done else {}) as reply:
            reply.raise_for_status()
            if reply.status_code != httpx.codes.PARTIAL_CONTENT:
                done = out.truncate(0)
            advance(done)
            try:
                for chunk in reply.iter_raw():
                    if done + len(chunk) > file.size:
                        partial.unlink()
                        what = f"{file.path} is larger than the {file.size} bytes that were announced"
                        raise Unavailable(what, "It was deleted; fetch it again, or from another source")
                    out.write(chunk)
                    advance(len(chunk))
                    done += len(chunk)
            except httpx.HTTPError:
                advance(-done)
                raise


def _is_temporary(error: httpx.HTTPError) -> bool:
    """Returns whether ``error`` may be temporary: a broken connection, an overloaded or restarting server."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == httpx.codes.TOO_MANY_REQUESTS or error.response.is_server_error
    return isinstance(error, httpx.TransportError)


def check(stored: StoredFile, size: int | None, sha256: str | None, at: Path) -> None:
    """Deletes the file ``at`` and raises Unavailable if its size or its SHA-256 differs from the announced value."""
    if sha256 and stored.sha256 != sha256:
        fault = f"its SHA-256 is {stored.sha256[:12]}... instead of {sha256[:12]}..."
    elif size is not None and stored.size != size:
        fault = f"it has {stored.size} bytes instead of {size}"
    else:
        return
    at.unlink()
    raise Unavailable(f"{stored.path} is damaged after the download: {fault}", "It was deleted; fetch it again")


def shown(text: str) -> str:
    """Returns untrusted ``text`` with all unprintable characters, such as terminal control codes, replaced by "?"."""
    return "".join(char if char.isprintable() else "?" for char in text)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def as_user_errors(
    ref: str, folder: Path, *, again: str = "fetch it again: it goes on where it stopped", with_token: bool = True
) -> Iterator[None]:
    """Converts errors of networks, hubs and disks in its block to a UserError with a remedy for ``ref``.

    ``again`` is what to do when the network works. ``with_token`` is whether this user's access token would be used.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _status(ref, error.response, with_token=with_token) from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        remedy = f"Check the network and proxy settings, then {again}"
        raise Unavailable(f"{ref} cannot be fetched: {reason}", remedy) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free some space, or set FREEDIVE_HOME to a folder on a larger disk, then fetch it again"
            raise Unavailable(f"The disk is full: {ref} did not fit into {folder}", remedy) from None
        raise UserError(
            f"{ref} cannot be stored in {folder}: {error.strerror or error}", "Set FREEDIVE_HOME elsewhere"
        ) from None


def _status(ref: str, reply: httpx.Response, *, with_token: bool) -> UserError:
    code, host = reply.status_code, reply.url.host
    if code == httpx.codes.FORBIDDEN or reply.headers.get("X-Error-Code") == "GatedRepo":
        remedy = f"Accept its terms on its page at {host}, create an access token there and set HF_TOKEN to it"
        remedy = remedy if with_token else "Ask the operator to serve it"
        return UserError(f"{ref} is not open to everyone", remedy)
    if code in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND):
        remedy = "set HF_TOKEN to a token that may read it" if with_token else "ask the operator to serve it"
        what = f"{ref} does not exist at {host}, or is private"
        return NotFound(what, f"Check the spelling; for a private model {remedy}")
    return Unavailable(f"{host} answered {code} {shown(reply.reason_phrase)} for {ref}", "Try again later")
