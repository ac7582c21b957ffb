"""Lists the files of repositories at Hugging Face and ModelScope."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from freedive.errors import Unavailable
from freedive.hub.download import RemoteFile, shown


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision."""

    files: tuple[RemoteFile, ...]
    revision: str | None = None
    licence: str | None = None


MAX_LISTING_BYTES = 32 << 20


def hugging_face_headers() -> dict[str, str]:
    """Returns headers with the user's access token from HF_TOKEN or `hf auth login`, or none if there is no token."""
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def hugging_face(http: httpx.Client, repository: str) -> Listing:
    """Lists a repository of Hugging Face, or of the mirror in ``HF_ENDPOINT``, at its newest commit.

    The URLs contain the commit, so that a push during the download cannot mix two versions.
    """
    from huggingface_hub import constants

    reply = _answer(http, f"{constants.ENDPOINT}/api/models/{repository}", {"blobs": "true"})
    base = f"{constants.ENDPOINT}/{repository}/resolve/{reply['sha']}"
    files = tuple(
        RemoteFile(name, f"{base}/{quote(name)}", file["size"], (file.get("lfs") or {}).get("sha256"))
        for file in reply["siblings"]
        for name in [file["rfilename"]]
    )
    licence = (reply.get("cardData") or {}).get("license")
    return Listing(files, str(reply["sha"]), shown(licence) if isinstance(licence, str) else None)


def modelscope(http: httpx.Client, repository: str) -> Listing:
    """Lists a repository of ModelScope, or of the site in ``MODELSCOPE_ENDPOINT`` or ``MODELSCOPE_DOMAIN``."""
    domain = os.environ.get("MODELSCOPE_DOMAIN", "www.modelscope.cn")
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT", f"https://{domain}").rstrip("/")
    query = {"Revision": "master", "Recursive": "True"}
    reply = _answer(http, f"{endpoint}/api/v1/models/{repository}/repo/files", query)
    base = f"{endpoint}/models/{repository}/resolve/master"
    files = tuple(
        RemoteFile(file["Path"], f"{base}/{quote(file['Path'])}", file["Size"], file.get("Sha256") or None)
        for file in reply["Data"]["Files"]
        if file["Type"] != "tree"
    )
    return Listing(files)


def _answer(http: httpx.Client, url: str, params: dict[str, str]) -> Any:
    """Returns the JSON at ``url``. Raises ValueError if it is invalid or longer than MAX_LISTING_BYTES."""
    body = bytearray()
    with http.stream("GET", url, params=params) as reply:
        reply.raise_for_status()
        for chunk in reply.iter_raw():
            body += chunk
            if len(body) > MAX_LISTING_BYTES:
                raise ValueError("too long")
    return json.loads(body)


@dataclass(frozen=True)
class Hub:
    """The interface of a hub: ``headers`` returns those with the user's token, ``ask`` lists a repository."""

    headers: Callable[[], dict[str, str]]
    ask: Callable[[httpx.Client, str], Listing]

    def listing(self, http: httpx.Client, repository: str) -> Listing:
        """Returns the files of ``repository``.

        Raises Unavailable if the answer is no listing, for example the login page of a network.
        """
        try:
            listing = self.ask(http, repository)
            if not all(_is_file(file) for file in listing.files):
                raise ValueError("a file without a size")
            return listing
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Unavailable(
                f"The answer about {repository} is not a listing of its files",
                "Check for a login page in the network, and the mirror that HF_ENDPOINT or MODELSCOPE_ENDPOINT names",
            ) from None


def _is_file(file: RemoteFile) -> bool:
    return isinstance(file.path, str) and type(file.size) is int and file.size >= 0


HUBS = {"hf": Hub(hugging_face_headers, hugging_face), "modelscope": Hub(dict, modelscope)}
