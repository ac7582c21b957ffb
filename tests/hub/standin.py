"""A model hub on 127.0.0.1 with the parts of the Hugging Face and ModelScope protocols that clients use.

It serves repositories from memory, and can cut connections, answer slowly or refuse requests.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class StandIn:
    """The state of the hub; ``repositories`` maps "owner/name" to {path: content}. Files that end in .json have no
    SHA-256."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    """The SHA-256 that is published instead of the true one, by path."""
    cuts: list[int] = field(default_factory=list)
    """The number of bytes after which each of the next downloads is cut off."""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers of the answers to the next requests."""
    gated: set[str] = field(default_factory=set)
    """Repositories whose files need a token."""
    ranges: bool = True
    pause_seconds: float = 0.0
    """Pause between chunks of 64 KiB."""
    downloads: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range header of every requested download."""
    url: str = ""


@contextmanager
def serving(state: StandIn) -> Iterator[StandIn]:
    class Handler(_Handler):
        standin = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    standin: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.standin.refusals:
            status, headers = self.standin.refusals.pop(0)
            return self._reply(status, b"{}", headers)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", path):
            return self._json(match[1], self._hugging_face)
        if match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path):
            return self._json(match[1], self._modelscope)
        if match := re.fullmatch(r"(?:/models)?/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            return self._file(match[1], match[3])
        return self._reply(404, b"{}")

    def _json(self, repository: str, listing: object) -> None:
        if repository not in self.standin.repositories:
            return self._reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        return self._reply(200, json.dumps(listing(repository)).encode(), {"Content-Type": "application/json"})

    def _sha256(self, path: str, content: bytes) -> str:
        return self.standin.hashes.get(path) or hashlib.sha256(content).hexdigest()

    def _hugging_face(self, repository: str) -> dict[str, object]:
        siblings = []
        for path, content in self.standin.repositories[repository].items():
            entry: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": "0" * 40}
            if not path.endswith(".json"):
                entry["lfs"] = {"sha256": self._sha256(path, content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "apache-2.0"}}

    def _modelscope(self, repository: str) -> dict[str, object]:
        files: list[dict[str, object]] = [{"Name": "folder", "Path": "folder", "Type": "tree", "Size": 0, "Sha256": ""}]
        for path, content in self.standin.repositories[repository].items():
            digest = self._sha256(path, content)
            files.append({"Name": path, "Path": path, "Type": "blob", "Size": len(content), "Sha256": digest})
        return {"Code": 200, "Data": {"Files": files}, "Success": True}

    def _file(self, repository: str, path: str) -> None:
        content = self.standin.repositories.get(repository, {}).get(path)
        if content is None:
            return self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        if repository in self.standin.gated and not self.headers.get("Authorization"):
            return self._reply(401, b"", {"X-Error-Code": "GatedRepo"})
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.standin.downloads.append((path, asked))
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and self.standin.ranges else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.standin.cuts.pop(0) if self.command == "GET" and self.standin.cuts else None
        return self._reply(206 if start else 200, content[start:], headers, cut)

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        with suppress(ConnectionError):  # the client was killed
            for place in range(0, len(sent), 1 << 16):
                self.wfile.write(sent[place : place + (1 << 16)])
                time.sleep(self.standin.pause_seconds)
        if cut is not None:
            self.close_connection = True
