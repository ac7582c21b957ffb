"""The folders of this machine that hold models, and what is made from them.

$FREEDIVE_HOME | $XDG_CACHE_HOME/freedive | ~/.cache/freedive
    models/<slug of the reference>/     freedive.json, written last: without it a model is incomplete
        files/                          the files of the repository or wheel, and no others
        partial/                        files that are being downloaded
    packed/<hash of the path>/          made from the checkpoint at that path: stores and descriptions
    pages/<hash of the path>-<hash>/    prompts in the form of the key-value cache (or below $FREEDIVE_PAGES)
    locks/<slug of the reference>       locked while a model is fetched or removed
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
"""Of a model's folder. In the first, the manifest lay among the files."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a model: ``path`` relative to the model's folder, ``size`` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Stored:
    """A model whose files are all in the cache. ``checkpoint`` is the file to open, "." for all of them."""

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
    """The cache's root; it need not exist yet."""
    if own := os.environ.get("FREEDIVE_HOME"):
        return Path(own).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "freedive"
    try:
        return Path.home() / ".cache" / "freedive"
    except RuntimeError:
        what = "this user has no home folder, so there is no place for models"
        raise UserError(what, "Set FREEDIVE_HOME to a folder") from None


def safe(path: str) -> bool:
    """Whether a path that strangers chose stays inside the folder it is taken relative to, and can be shown."""
    return not {"", ".", ".."} & set(path.split("/")) and "\\" not in path and path.isprintable()


def identity(ref: str) -> str:
    """The same for all spellings of a reference: hubs and indexes do not tell cases apart, but files' names do."""
    scheme, colon, rest = ref.partition(":")
    owner, slash, rest = rest.partition("/")
    name, _, file = rest.partition("/")
    if scheme == "pypi":
        return f"{scheme}{colon}{owner.lower()}{slash}{rest}"
    return f"{scheme}{colon}{owner.lower()}{slash}{name.lower()}" + (f"/{file}" if file else "")


def model_folder(ref: str) -> Path:
    """Where the model with this reference belongs; one of an earlier version, where it is."""
    folder = home() / "models" / _slug(identity(ref))
    earlier = home() / "models" / _slug(ref)
    return earlier if not folder.exists() and earlier.exists() else folder


def _slug(ref: str) -> str:
    """Readable and, by its hash, one to one: references may hold characters and lengths that names may not."""
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', ref)[:100]}-{_hash(ref)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stored() -> list[Stored]:
    """All models that are here, by reference."""
    models = (_read(path) for path in home().glob(f"models/*/{MANIFEST}"))
    return sorted(filter(None, models), key=lambda model: model.ref)


def find(ref: str) -> Stored | None:
    """The model with this reference, in any spelling, if it is wholly here."""
    if (manifest := model_folder(ref) / MANIFEST).exists():
        return _read(manifest)
    return next((model for model in stored() if identity(model.ref) == identity(ref)), None)


def _read(manifest: Path) -> Stored | None:
    """None for a damaged manifest: such a model counts as not fetched, and fetching it mends it."""
    try:
        table = json.loads(manifest.read_text("utf-8"))
        model = Stored(**table | {"files": tuple(StoredFile(**file) for file in table["files"])})
        names = [file.path for file in model.files]
        opens_its_own = all(map(safe, names)) and model.checkpoint in (".", *names)
        return model if opens_its_own and model_folder(model.ref) == manifest.parent else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def record(
    ref: str, checkpoint: str, files: tuple[StoredFile, ...], licence: str | None = None, revision: str | None = None
) -> Stored:
    """Declare a model whole: all ``files`` are in its folder under their final names. Others there are deleted."""
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
    """Delete a model, whole or half-fetched, and what was packed from it; return the bytes freed."""
    with locked(ref):
        model = find(ref)
        folder = model_folder(model.ref if model else ref)
        freed = remove_packed(model.path) if model else 0
        (folder / MANIFEST).unlink(missing_ok=True)  # first: from here on the model is not whole
        return freed + _remove_tree(folder)


def remove_packed(checkpoint: Path) -> int:
    """Delete what was packed from the checkpoint at this path, and computed with it; return the bytes freed."""
    pages = _pages_root().glob(f"{_hash(str(checkpoint.resolve()))}-*")
    return sum(map(_remove_tree, (_packed_folder(checkpoint), *pages)))


def _remove_tree(folder: Path) -> int:
    freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def packed_path(checkpoint: Path, key: str) -> Path:
    """Where the store packed from ``checkpoint`` (a file or folder) under ``key`` belongs; its folder exists.

    ``key`` names the layout, e.g. its version and number format. The name changes when the checkpoint's files do, so
    a store that exists under it was made from these very files.
    """
    folder = _packed_folder(checkpoint)
    _make(folder)
    return folder / f"{_hash(key + checkpoint_fingerprint(checkpoint))}.fdv"


def _packed_folder(checkpoint: Path) -> Path:
    return home() / "packed" / _hash(str(checkpoint.resolve()))


def pages_folder(checkpoint: Path, key: str) -> Path:
    """Where pages of the key-value cache belong that were computed with ``checkpoint`` (a file or folder).

    ``key`` names what else their bits depend on. Like that of :func:`packed_path`, the name changes with the files.
    """
    return _pages_root() / f"{_hash(str(checkpoint.resolve()))}-{_hash(key + checkpoint_fingerprint(checkpoint))}"


def _pages_root() -> Path:
    own = os.environ.get("FREEDIVE_PAGES")
    return Path(own).expanduser().absolute() if own else home() / "pages"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{folder} cannot be made: {error.strerror}"
        raise Unavailable(what, "Set FREEDIVE_HOME to a folder that can be written") from None


@contextmanager
def locked(ref: str) -> Iterator[None]:
    """One process at a time for this model; the lock falls with the process that holds it, however that ends.

    Every user who can open the file can take the lock, so only the owner can open it.
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
    """Make the file, if need be, and let its owner alone open it. Raises Unavailable."""
    _make(path.parent)
    with _own_file(path):
        pass


@contextmanager
def _own_file(path: Path) -> Iterator[int]:
    """A descriptor of the file, which only its owner can open."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise Unavailable(what, "Set FREEDIVE_HOME to a folder that is yours") from None
    try:
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o600)  # those of an earlier version were everybody's to open
        yield descriptor
    finally:
        os.close(descriptor)
