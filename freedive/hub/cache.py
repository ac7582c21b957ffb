"""The cache of models and of the data computed from them, on this machine.

$FREEDIVE_HOME | $XDG_CACHE_HOME/freedive | ~/.cache/freedive
    models/<slug of the reference>/     freedive.json, written last: without it a model is incomplete
        files/                          only the files of the repository, wheel or quantised model
        partial/                        files that are being downloaded
    packed/<hash of the path>/          stores and descriptions made from the checkpoint at that path
    pages/<hash of the path>-<hash>/    pages of the key-value cache (or below $FREEDIVE_PAGES)
    responses.sqlite                    responses that the server stores
    conversations.sqlite                conversations of the chat page
    disks.json                          the measured speed of disks
    locks/<slug of the reference>       locked while a model is downloaded or removed
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from freedive.checkpoint.fingerprint import checkpoint_fingerprint
from freedive.disk import settle
from freedive.errors import Unavailable, UserError

MANIFEST = "freedive.json"
FILES, PARTIAL = "files", "partial"
LAYOUT = 2
"""Version of the layout of a model's folder; in version 1 the manifest was in the same folder as the files."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a model; ``path`` is relative to the folder of its files, ``size`` is in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Stored:
    """A model that is completely in the cache. ``checkpoint`` is the file to open, or "." to open the folder."""

    ref: str
    checkpoint: str
    files: tuple[StoredFile, ...]
    licence: str | None
    revision: str | None
    date: str
    layout: int = 1

    @property
    def path(self) -> Path:
        folder = model_folder(self.ref)
        return (folder if self.layout == 1 else folder / FILES) / self.checkpoint

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def home() -> Path:
    """Returns the root of the cache, which need not exist yet. Raises UserError if the user has no home folder."""
    if own := os.environ.get("FREEDIVE_HOME"):
        return Path(own).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "freedive"
    try:
        return Path.home() / ".cache" / "freedive"
    except RuntimeError:
        what = "This user has no home folder, so there is no place for models"
        raise UserError(what, "Set FREEDIVE_HOME to a folder") from None


def safe(path: str) -> bool:
    """Returns whether an untrusted relative ``path`` stays inside its folder and has only printable characters."""
    return not {"", ".", ".."} & set(path.split("/")) and "\\" not in path and path.isprintable()


def identity(ref: str) -> str:
    """Returns ``ref`` with the case-insensitive parts in lower case, so that equivalent references are equal.

    Hubs and package indexes ignore case; file names do not.
    """
    scheme, colon, rest = ref.partition(":")
    owner, slash, rest = rest.partition("/")
    name, _, file = rest.partition("/")
    if scheme == "pypi":
        return f"{scheme}{colon}{owner.lower()}{slash}{rest}"
    return f"{scheme}{colon}{owner.lower()}{slash}{name.lower()}" + (f"/{file}" if file else "")


def model_folder(ref: str) -> Path:
    """Returns the folder of the model with this reference; an existing folder of an older version if there is one."""
    folder = home() / "models" / _slug(identity(ref))
    earlier = home() / "models" / _slug(ref)
    return earlier if not folder.exists() and earlier.exists() else folder


def _slug(ref: str) -> str:
    """Returns a readable and unique file name for ``ref``, which may be too long or have forbidden characters."""
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', ref)[:100]}-{_hash(ref)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stored() -> list[Stored]:
    """Returns all models in the cache, sorted by reference."""
    models = (_read(path) for path in home().glob(f"models/*/{MANIFEST}"))
    return sorted(filter(None, models), key=lambda model: model.ref)


def find(ref: str) -> Stored | None:
    """Returns the model with this reference, ignoring case, if it is completely in the cache; else None."""
    if (manifest := model_folder(ref) / MANIFEST).exists():
        return _read(manifest)
    return next((model for model in stored() if identity(model.ref) == identity(ref)), None)


def _read(manifest: Path) -> Stored | None:
    """Reads a manifest; returns None if it is damaged, so that the model is downloaded again."""
    try:
        table = json.loads(manifest.read_text("utf-8"))
        model = Stored(**table | {"files": tuple(StoredFile(**file) for file in table["files"])})
        names = [file.path for file in model.files]
        is_safe = all(map(safe, names)) and model.checkpoint in (".", *names)
        return model if is_safe and model_folder(model.ref) == manifest.parent else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def record(
    ref: str, checkpoint: str, files: tuple[StoredFile, ...], licence: str | None = None, revision: str | None = None
) -> Stored:
    """Marks a model as complete, when all ``files`` have their final names; deletes other files in its folder."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    model, folder = Stored(ref, checkpoint, files, licence, revision, date, LAYOUT), model_folder(ref)
    own = {folder / FILES / file.path for file in files} | {folder / MANIFEST}
    for path in [path for path in folder.rglob("*") if not path.is_dir() and path not in own]:
        path.unlink()
    temporary = folder / f"{MANIFEST}.partial"
    temporary.write_text(json.dumps(asdict(model), indent=2) + "\n", "utf-8")
    settle(temporary, folder / MANIFEST)
    return model


def remove(ref: str) -> int:
    """Deletes a model, complete or not, and the data made from it; returns the number of bytes freed."""
    with locked(ref):
        model = find(ref)
        folder = model_folder(model.ref if model else ref)
        freed = remove_packed(model.path) if model else 0
        (folder / MANIFEST).unlink(missing_ok=True)  # first, because the model is incomplete from here on
        return freed + _remove_tree(folder)


def discard(ref: str) -> int:
    """Deletes what an unfinished download left; returns the number of bytes freed, 0 if the model is complete."""
    with locked(ref):
        return 0 if find(ref) else _remove_tree(model_folder(ref))


def discard_unfinished(scheme: str) -> None:
    """Deletes what ended processes left of models of this scheme; a model that somebody makes now is locked, and
    stays."""
    for folder in home().glob(f"models/{scheme}-*"):
        if (folder / MANIFEST).exists():
            continue
        lock = home() / "locks" / folder.name
        _make(lock.parent)
        with _own_file(lock) as descriptor, suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_tree(folder)


def partial_bytes(ref: str) -> int:
    """Returns the bytes that an unfinished download has, 0 if the model is complete or nothing of it came."""
    folder = model_folder(ref)
    if (folder / MANIFEST).exists():
        return 0
    return sum(
        path.stat().st_size for kind in (FILES, PARTIAL) for path in (folder / kind).rglob("*") if path.is_file()
    )


def remove_packed(checkpoint: Path) -> int:
    """Deletes the stores and pages made from the checkpoint at this path; returns the number of bytes freed."""
    pages = _pages_root().glob(f"{_hash(str(checkpoint.resolve()))}-*")
    return sum(map(_remove_tree, (_packed_folder(checkpoint), *pages)))


def _remove_tree(folder: Path) -> int:
    freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def packed_path(checkpoint: Path, key: str) -> Path:
    """Returns the path of the store of ``checkpoint`` (a file or folder) with this ``key``; creates its folder.

    ``key`` identifies the layout, for example its version and number format. The path changes when a file of the
    checkpoint changes, so a store at this path was made from the present files.
    """
    folder = _packed_folder(checkpoint)
    _make(folder)
    return folder / f"{_hash(key + checkpoint_fingerprint(checkpoint))}.fdv"


def _packed_folder(checkpoint: Path) -> Path:
    return home() / "packed" / _hash(str(checkpoint.resolve()))


def pages_folder(checkpoint: Path, key: str) -> Path:
    """Returns the folder of the cached pages that were computed with ``checkpoint`` (a file or folder).

    ``key`` identifies everything else that their bits depend on. The path changes when a file of the checkpoint
    changes.
    """
    return _pages_root() / f"{_hash(str(checkpoint.resolve()))}-{_hash(key + checkpoint_fingerprint(checkpoint))}"


def _pages_root() -> Path:
    own = os.environ.get("FREEDIVE_PAGES")
    return Path(own).expanduser().absolute() if own else home() / "pages"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{folder} cannot be created: {error.strerror}"
        raise Unavailable(what, "Set FREEDIVE_HOME to a folder that can be written") from None


@contextmanager
def locked(ref: str) -> Iterator[None]:
    """Holds the lock of a model, which only one process can have; the system releases it when the process ends.

    A user who can open the file could take the lock, so only the owner can open it.
    """
    path = home() / "locks" / _slug(identity(ref))
    _make(path.parent)
    with _own_file(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that is busy with {ref}", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def keep_private(path: Path) -> None:
    """Creates the file if it does not exist, readable by its owner only. Raises Unavailable if that is impossible."""
    _make(path.parent)
    with _own_file(path):
        pass


@contextmanager
def _own_file(path: Path) -> Iterator[int]:
    """Opens the file, which only its owner can open, and yields its descriptor."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise Unavailable(what, "Set FREEDIVE_HOME to a folder that you own") from None
    try:
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o600)  # in an earlier version all users could open these files
        yield descriptor
    finally:
        os.close(descriptor)
