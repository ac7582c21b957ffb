"""Fetches only the headers of a model's files, so that it can be described before it is downloaded."""

from __future__ import annotations

import struct
from pathlib import Path

import httpx

from freedive.errors import Unavailable, UserError
from freedive.hub.choose import choose, is_model
from freedive.hub.download import RemoteFile, as_user_errors, client
from freedive.hub.download_limits import MAX_FILES
from freedive.hub.hubs import HUBS
from freedive.hub.sources import Address

HEAD_BYTES = 1 << 20
"""The first bytes of a file of weights that are fetched; in a safetensors file they usually contain the header."""

GGUF_BYTES = 24 << 20
"""The first bytes of a GGUF file that are fetched. Its header has the vocabulary: 15 MB for 260,000 tokens."""

MAX_BYTES = 100_000_000
"""The largest header, as in the safetensors format."""

WHOLE_BYTES = 32 << 20
"""Other files up to this size are fetched whole: configuration, index, tokenizer."""


def fetch_headers(address: Address, folder: Path) -> tuple[Path, int]:
    """Makes a copy of a repository's model in ``folder``, with holes in place of the data of weights.

    Returns the path to open, and the size of the download in bytes. Each file of weights has its full size but takes
    the space of its header only. Raises the errors of :func:`freedive.hub.sources.pull`.
    """
    hub = HUBS[address.scheme]
    with as_user_errors(str(address), folder, again="try again"), client(hub.headers()) as http:
        listing = hub.listing(http, address.origin)
        choice = choose(f"{address.scheme}:{address.origin}", listing.files, address.file)
        if len(choice.files) > MAX_FILES:
            raise UserError(f"{address} has {len(choice.files)} files", f"Name one: {address}/FILE")
        for file in choice.files:
            _fetch(http, file, folder / file.path)
        return folder / choice.checkpoint, sum(file.size for file in choice.files)


def _fetch(http: httpx.Client, file: RemoteFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gguf" and is_model(file.path):
        data = _first(http, file, GGUF_BYTES)
    elif path.suffix in (".gguf", ".safetensors"):  # a further part of a GGUF file has no vocabulary
        data = _first(http, file, HEAD_BYTES)
        size = 8 + struct.unpack("<Q", data[:8].ljust(8, b"\0"))[0] if path.suffix == ".safetensors" else 0
        if size > MAX_BYTES:
            raise UserError(f"{file.path} has a header of {size} bytes", "Choose another repository")
        if size > len(data):
            data = _first(http, file, size)
    elif file.size <= WHOLE_BYTES:
        data = _first(http, file, WHOLE_BYTES)
    else:
        return  # a large file that is no weights, such as a vocabulary in another format
    path.write_bytes(data)
    with path.open("r+b") as out:
        out.truncate(file.size)


def _first(http: httpx.Client, file: RemoteFile, count: int) -> bytes:
    """Returns the first ``count`` bytes of a file, or all if it is shorter."""
    count = min(count, file.size)
    data = bytearray()
    if not count:
        return b""
    with http.stream("GET", file.url, headers={"Range": f"bytes=0-{count - 1}"}) as reply:
        reply.raise_for_status()
        for chunk in reply.iter_raw():
            data += chunk
            if len(data) >= count:  # a server without ranges sends the whole file
                break
    if len(data) < count:
        raise Unavailable(f"{file.path} has {len(data)} bytes instead of {count}", "Try again later")
    return bytes(data[:count])
