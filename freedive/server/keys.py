"""API keys, stored in a file of freedive's home. Each key has a name and is a tenant of the server."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from freedive.disk import settle
from freedive.errors import Forbidden, NotFound, Unavailable, UserError
from freedive.hub import cache

logger = logging.getLogger(__name__)

PREFIX = "fd-"
NUM_SECRET_BYTES = 32
LOCK = "keys"
POLL_S = 1.0
"""Seconds between two checks of a server whether the key file has changed."""
HINT_LENGTH = 4
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")

RIGHTS = {
    "pull": "fetch models from hubs",
    "manage": "unload and pin models, and see what all callers use",
    "files": "quantise, fine-tune and remove models",
}
"""Rights that a key may have in addition to sending requests, which every key may."""


@dataclass(frozen=True)
class Key:
    """The stored data of a key: not the secret itself, but its hash, and its last characters as a ``hint``.

    ``id`` identifies the tenant: two keys share no cache, stored response, statistic or queue position. An id is never
    used again; a name can be. A limit of None does not limit. ``may`` holds names of :data:`RIGHTS`; an unknown right
    (of a later version) allows nothing. ``hash`` is a plain SHA-256: a slow hash protects passwords that can be
    guessed, but a random secret of 256 bits cannot be guessed.
    """

    id: str
    name: str
    hash: str
    hint: str
    created: str
    requests_per_minute: int | None = None
    max_running: int | None = None
    may: tuple[str, ...] = ()

    def require(self, right: str) -> None:
        """Raises Forbidden if the key does not have this right."""
        if right not in self.may:
            what = f"You may not {RIGHTS[right]} on this server"
            raise Forbidden(what, f"Ask its operator for a key made with: freedive keys create NAME --may {right}")


def nobody(*may: str) -> Key:
    """Returns the anonymous key, the tenant of all requests without a key, with the rights ``may``."""
    return Key("", "", "", "", "", may=may)


class DamagedKeys(UserError):
    """A key file that cannot be read or parsed: the server then admits no key."""

    def __init__(self, path: Path, why: str) -> None:
        remedy = "Restore it, or delete it and make new keys with: freedive keys create NAME"
        super().__init__(f"The keys in {path} cannot be read ({why})", remedy)


def key_file() -> Path:
    """Returns the path of the key file, which may not exist yet."""
    return cache.home() / "keys.json"


@dataclass(frozen=True)
class KeyFile:
    """The content of a key file. With ``required``, requests need a key even if the file has none."""

    keys: tuple[Key, ...] = ()
    required: bool = False


def read_keys(path: Path) -> tuple[Key, ...]:
    """Returns all keys of a file, none if the file does not exist. Raises DamagedKeys."""
    return read_key_file(path).keys


def read_key_file(path: Path) -> KeyFile:
    """Returns the content of the key file at ``path``, an empty one if it does not exist. Raises DamagedKeys.

    A file of an older version without the field ``required`` requires keys, because it once had a key.
    """
    try:
        table = json.loads(path.read_text("utf-8"))
        keys = tuple(Key(**entry | {"may": tuple(entry.get("may", ()))}) for entry in table["keys"])
        if all(isinstance(text, str) for key in keys for text in (key.id, key.name, key.hash)):
            return KeyFile(keys, bool(keys) or table.get("required", True) is not False)
        raise ValueError("a field is no text")
    except FileNotFoundError:
        return KeyFile()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedKeys(path, str(error)) from None


def create(
    name: str,
    requests_per_minute: int | None = None,
    max_running: int | None = None,
    may: Sequence[str] = (),
) -> str:
    """Creates a key and returns its secret, of which only the hash is stored.

    Raises UserError for a name that is taken or has other characters, and for an unknown right.
    """
    for right in may:
        if right not in RIGHTS:
            raise UserError(f"{right!r} is not a right", f"Choose one of {', '.join(RIGHTS)}", param="may")
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be a key's name", "Use up to 64 letters, digits and . _ @ -", param="name")
    secret = PREFIX + secrets.token_urlsafe(NUM_SECRET_BYTES)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    limits = requests_per_minute, max_running
    key = Key(secrets.token_hex(8), name, _hash(secret), secret[-HINT_LENGTH:], created, *limits, tuple(may))
    with cache.locked(LOCK):
        keys = read_keys(key_file())
        if any(other.name == name for other in keys):
            raise UserError(f"There is already a key named {name}", f"Revoke it first: freedive keys revoke {name}")
        _write([*keys, key])
    return secret


def revoke(name: str) -> Key:
    """Deletes the key with this name or id, and returns it. Raises NotFound."""
    with cache.locked(LOCK):
        keys = read_keys(key_file())
        gone = next((key for key in keys if name in (key.name, key.id)), None)
        if not gone:
            raise NotFound(f"There is no key {name}", "List the keys with: freedive keys list")
        _write([key for key in keys if key is not gone])
    return gone


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _write(keys: Sequence[Key]) -> None:
    path = key_file()
    temporary = path.with_suffix(".partial")
    temporary.unlink(missing_ok=True)  # an existing file would keep its permissions
    with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        json.dump({"required": True, "keys": [asdict(key) for key in keys]}, file, indent=2)
    settle(temporary, path)


class Keys:
    """The keys of a file, which are read again within ``POLL_S`` seconds of a change.

    Raises DamagedKeys if the file cannot be read at the start. Once keys were ``required``, they stay required until
    the process ends: revoking the last key or deleting the file does not open the server.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or key_file()
        self._state: object = None
        file = read_key_file(self._path)
        self._keys: Sequence[Key] | None = file.keys
        self._next_check = 0.0
        self.required = file.required

    def holder(self, secret: str) -> Key | None:
        """Returns the key with this secret, None if there is none. Raises Unavailable while the file is damaged."""
        self.reload_if_changed()
        if self._keys is None:
            raise Unavailable("The server cannot read its key file", "Ask its operator to repair the file")
        digest, found = _hash(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.hash, digest):
                found = key
        return found

    def admits(self, id: str) -> bool:
        """Whether requests of the tenant ``id`` are admitted, as far as the file was read; "" is that of no key.

        While the file is damaged, no key counts as revoked.
        """
        if self._keys is None:
            return True
        return any(key.id == id for key in self._keys) if id else not self.required

    def reload_if_changed(self) -> None:
        """Reads the file again if it has changed, at most once in ``POLL_S`` seconds."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + POLL_S
        if (state := _state(self._path)) == self._state:
            return
        self._state = state
        try:
            file = read_key_file(self._path)
            self._keys, self.required = file.keys, self.required or file.required
        except DamagedKeys as error:
            self._keys, self.required = None, True
            logger.error("%s", error)


def _state(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError as error:
        return error.errno
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
