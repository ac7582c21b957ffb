"""What recipes share: archives of the registries' ordinary clients, unpacked; JSONL with a manifest beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TEXT, MANIFEST = "text.jsonl", "manifest.json"

Record = dict[str, Any]
"""{"text": ...}, or {"messages": [{"role": ..., "content": ...}, ...]}."""


@dataclass(frozen=True)
class Source:
    """Where text comes from: a package's archive, and ``files``, the folder with what was in it."""

    name: str
    version: str
    licence: str
    sha256: str
    files: Path


def npm(name: str, version: str, folder: Path) -> Source:
    """A package of npm's; ``npm pack`` fetches it."""
    output = run("npm", "pack", f"{name}@{version}", "--silent", folder=folder)
    archive = folder / output.split()[-1]
    files = folder / "files"
    unpack(archive, files)
    about = json.loads((files / "package" / "package.json").read_text("utf-8"))
    return Source(name, about["version"], about["license"], sha256(archive), files / "package")


def unpack(archive: Path, folder: Path) -> None:
    """The regular files of ``archive`` that lie below ``folder``. tarfile has filters only from Python 3.11.4 on."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = (folder / member.name).resolve()
            if (data := tar.extractfile(member)) and member.isfile() and path.is_relative_to(folder.resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data.read())


def debian(name: str, folder: Path) -> Source:
    """A package of Debian's or a descendant's; ``apt-get download`` fetches what the system's own lists name."""
    run("apt-get", "download", name, folder=folder)
    (archive,) = folder.glob(f"{name}_*.deb")
    files = folder / name
    run("dpkg-deb", "-x", str(archive), str(files), folder=folder)
    version = run("dpkg-deb", "-f", str(archive), "Version", folder=folder).strip()
    licence = licence_of((files / "usr" / "share" / "doc" / name / "copyright").read_text("utf-8"))
    return Source(name, version, licence, sha256(archive), files)


def licence_of(copyright: str) -> str:
    """The licence of the files themselves, by Debian's copyright file (format 1.0): that of ``Files: *``."""
    for paragraph in copyright.split("\n\n"):
        lines = paragraph.strip().splitlines()
        if "Files: *" in lines:
            return next(line.removeprefix("License:").strip() for line in lines if line.startswith("License:"))
    return "see the package's copyright file"


def write(folder: Path, records: Iterable[Record], source: Source) -> None:
    """Write each record once, on a line of JSON, and where all of them come from."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = list(dict.fromkeys(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    (folder / TEXT).write_text("".join(lines), "utf-8")
    size = (folder / TEXT).stat().st_size
    origin = {key: value for key, value in asdict(source).items() if key != "files"}
    manifest = {**origin, "records": len(lines), "bytes": size}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    print(f"{len(lines):,} records, {size / 1e6:.1f} MB: {folder / TEXT}")


def run(*command: str, folder: Path) -> str:
    """The output of a command; the recipe ends where it is missing or fails."""
    if not shutil.which(command[0]):
        sys.exit(f"{command[0]} is not installed.")
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed.")
    return done.stdout


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
