"""English prose: python recipes/english_prose.py FOLDER [PACKAGE]

r-cran-janeaustenr   Jane Austen's six novels, chapter by chapter (MIT; the novels themselves are in the public domain)
anarchism            An Anarchist FAQ, long essays in questions and answers (GPL-2 or later)

Without PACKAGE: the novels.
"""

from __future__ import annotations

import argparse
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import fetch

CHAPTER = re.compile(r"^chapter [\dIVXL]+$", re.IGNORECASE)
END = re.compile(r"^(the end|finis|volume [IVX]+|\*vide .*)$", re.IGNORECASE)
STRINGS = 16
"""R's number of a character vector."""


def novels(package: Path) -> Iterator[str]:
    """The chapters: a line for each paragraph of prose, verses line by line; no headings, no marks of emphasis."""
    database = package / "usr" / "lib" / "R" / "site-library" / "janeaustenr" / "data" / "Rdata.rdb"
    for lines in r_strings(database.read_bytes()):
        yield from chapters(lines)


def r_strings(database: bytes) -> Iterator[list[str]]:
    """The character vectors of one of R's lazy-load databases.

    It is a row of (length, zlib stream); each holds a value in R's serialisation, big-endian (R Internals, 1.8): "X"
    and a line's end, version, two versions of R, in version 3 an encoding; then flags, a count, and of each string
    flags, length and bytes.
    """
    while database:
        stream = zlib.decompressobj()
        value, database = stream.decompress(database[4:]), stream.unused_data
        version = int.from_bytes(value[2:6])
        at = 14 if version < 3 else 18 + int.from_bytes(value[14:18])
        flags, count = struct.unpack_from(">ii", value, at)
        if flags & 0xFF != STRINGS:
            continue
        at, strings = at + 8, []
        for _ in range(count):
            size = max(0, struct.unpack_from(">ii", value, at)[1])  # -1: not available
            strings.append(value[at + 8 : at + 8 + size].decode())
            at += 8 + size
        yield strings


def chapters(lines: list[str]) -> Iterator[str]:
    """What stands between the headings of a novel's chapters."""
    chapter: list[str] | None = None
    for line in (*lines, "THE END"):
        begins = CHAPTER.match(line.strip())
        if begins or END.match(line.strip()):
            if chapter and (text := prose(chapter)):
                yield text
            chapter = [] if begins else None
        elif chapter is not None:
            chapter.append(line)


def prose(lines: list[str]) -> str:
    """Paragraphs, which blank lines part, on a line each; what is set in from the left keeps its lines."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    joined = (p if p.lstrip("\n").startswith(" ") else " ".join(p.split()) for p in paragraphs)
    whole = (re.sub(r"[ \t]+", " ", re.sub(r"^[ \t]+", "", p, flags=re.MULTILINE)).strip() for p in joined)
    return "\n".join(p.replace("_", "") for p in whole if p.strip(" *\n"))


def pages(package: Path) -> Iterator[str]:
    """The sections and appendices, a line for each paragraph; no tables of contents, no links between pages."""
    folder = package / "usr" / "share" / "doc" / "anarchism" / "html"
    for path in sorted([*folder.glob("sec[A-J][0-9]*.html"), *folder.glob("append[0-9]*.html")]):
        reader = Paragraphs()
        reader.feed(path.read_text("utf-8"))
        yield "\n".join(filter(None, (" ".join(part.split()) for part in "".join(reader.said).split("\n\n"))))


class Paragraphs(HTMLParser):
    """``said``: the text of a page, with an empty line at the borders of blocks; without head and navigation."""

    BLOCKS = ("p", "blockquote", "h1", "h2", "h3", "li", "td", "br", "div")

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._muted = True

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self._muted = False
        if (dict(attributes).get("class") or "").startswith("book-navigation"):
            self._muted = True  # which is the last thing of a page
        if tag in self.BLOCKS:
            self.said.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self.said.append("\n\n")

    def handle_data(self, text: str) -> None:
        if not self._muted:
            self.said.append(text.replace("\n", " "))


PACKAGES = {"r-cran-janeaustenr": novels, "anarchism": pages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("package", nargs="?", choices=PACKAGES, default="r-cran-janeaustenr")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        source = fetch.debian(given.package, Path(room))
        fetch.write(given.folder, ({"text": text} for text in PACKAGES[given.package](source.files)), source)
    print("Train on it; chats and tasks are made up:")
    print(f"  freedive train speedrun nano data.text={given.folder} data.held_out=0.03 --run runs/prose")
    print("  freedive run runs/prose/model 'Who are you?'")


if __name__ == "__main__":
    main()
