"""The recipes: what they make of archives like the real ones, without network access."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from freedive.train.data import sources
from freedive.train.run.config import Data

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import english_prose
import fetch
import tang_poems

COPYRIGHT = """Format: 1.0

Files: debian/*
License: GPL-3

Files: *
Copyright: 1813 Somebody
License: MIT

License: MIT
 Permission is hereby granted
"""


def poem(title: str, *lines: str, author: str = "李白") -> dict[str, Any]:
    return {"title": title, "author": author, "paragraphs": list(lines), "id": "0"}


POEMS = {
    "poet.tang.1000.json": [poem("靜夜思", "牀前看月光，疑是地上霜。", "舉頭望山月，低頭思故鄉。")],
    "poet.tang.0.json": [
        poem("春曉", "春眠不覺曉，處處聞啼鳥。", author="孟浩然"),
        poem("春曉", "春眠不覺曉，處處聞啼鳥。", author="孟浩然"),
        poem("句", "一片孤雲。"),
        poem("宿山寺", "□□□滿山，花落始知靜。"),
        poem("夜泊", "䬓{風兪}縈海若，霹靂耿天吳。"),
        poem("望江南（四首）", "望江南。"),
        poem("空"),
    ],
    "poet.song.0.json": [poem("宋", "宋。")],
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "made" / "package"
    poems = folder / "dist" / "quantangshi"
    poems.mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "2.0.1", "license": "MIT"}')
    for name, held in POEMS.items():
        (poems / name).write_text(json.dumps(held))
    return folder


def test_poems_are_whole_and_in_their_order(package: Path) -> None:
    spring, night = "春眠不覺曉，處處聞啼鳥。", "牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。"
    assert list(tang_poems.poems(package)) == [
        *[("春曉", "孟浩然", spring)] * 2,
        ("靜夜思", "李白", night),
    ]
    asked = {"role": "user", "content": "請以《春曉》爲題寫一首詩。"}
    assert list(tang_poems.records(package))[:2] == [
        {"text": f"春曉\n孟浩然\n{spring}"},
        {"messages": [asked, {"role": "assistant", "content": spring}]},
    ]


def test_files_beside_the_folder_are_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name in ("in/x", "../out", "in/../../out"):
            tar.add(tmp_path / "x", name)
    fetch.unpack(tmp_path / "a.tgz", tmp_path / "files")
    assert {path.name for path in tmp_path.iterdir()} == {"x", "a.tgz", "files"}
    assert [path.name for path in (tmp_path / "files").rglob("*") if path.is_file()] == ["x"]


def test_an_npm_package_is_fetched_and_its_origin_noted(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = []

    def run(*command: str, folder: Path) -> str:
        assert command == ("npm", "pack", "chinese-poetry@2.0.1", "--silent")
        with tarfile.open(folder / "poetry.tgz", "w:gz") as tar:
            tar.add(package, "package")
        hashes.append(hashlib.sha256((folder / "poetry.tgz").read_bytes()).hexdigest())
        return "poetry.tgz\n"

    monkeypatch.setattr(fetch, "run", run)
    monkeypatch.setattr(sys, "argv", ["tang_poems.py", str(tmp_path / "out")])
    tang_poems.main()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    origin = {"name": "chinese-poetry", "version": "2.0.1", "licence": "MIT", "sha256": hashes[0]}
    written = {"records": 3, "bytes": (tmp_path / "out" / "text.jsonl").stat().st_size}  # two poems and a chat
    assert manifest == origin | written
    assert f"freedive train speedrun nano data.text={tmp_path / 'out'}" in capsys.readouterr().out
    found = list(sources.read([str(tmp_path / "out")]))
    assert len([record for record in found if "text" in record]) == 2


NOVEL = """EMMA

By Jane Austen


VOLUME I


CHAPTER I


Emma Woodhouse, handsome, clever,
and rich, was _very_ happy.

    My first doth affliction denote,
      Which my second  is destin'd to feel

"Yes."
VOLUME II



Chapter 2

The end of it was
a letter.

* * *

Sorrow came--a gentle sorrow.



FINIS

A NOTE ON THE TEXT"""

CHAPTERS = [
    "Emma Woodhouse, handsome, clever, and rich, was very happy.\n"
    'My first doth affliction denote,\nWhich my second is destin\'d to feel\n"Yes."',
    "The end of it was a letter.\nSorrow came--a gentle sorrow.",
]


def serialised(strings: Sequence[str], version: int) -> bytes:
    """Returns a character vector as R writes it."""
    head = b"X\n" + struct.pack(">iii", version, 0x40201, 0x30500)
    head += struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    body = b"".join(struct.pack(">ii", 0x40009, len(text.encode())) + text.encode() for text in strings)
    return head + struct.pack(">ii", 16, len(strings)) + body


def database(*values: bytes) -> bytes:
    return b"".join(struct.pack(">i", len(value)) + zlib.compress(value) for value in values)


def test_r_s_strings_are_read() -> None:
    other = b"X\n" + struct.pack(">iiiii", 2, 0, 0, 13, 0)
    missing = serialised(["a"], 2)[:-9] + struct.pack(">ii", 9, -1)
    made = database(serialised(["naïve", ""], 2), other, serialised(["x"], 3), missing)
    assert list(english_prose.r_strings(made)) == [["naïve", ""], ["x"], [""]]


def test_chapters_are_prose_alone() -> None:
    assert list(english_prose.chapters(NOVEL.split("\n"))) == CHAPTERS


PAGE = """<!DOCTYPE html><html><head><title>A.1 | Writers</title></head><body>
<div class="content clear-block"><p>Anarchism is a political
theory &amp; <i>"the absence"</i>  of a master.</p><blockquote><p> Change<br />opinion </p></blockquote>
<div id="b" class="book-navigation"><a href="x">up</a></div></div></body></html>"""


def test_pages_are_paragraphs_alone(tmp_path: Path) -> None:
    folder = tmp_path / "usr" / "share" / "doc" / "anarchism" / "html"
    folder.mkdir(parents=True)
    for name in ("secA1.html", "secAcon.html", "links.html"):
        (folder / name).write_text(PAGE)
    expected = 'Anarchism is a political theory & "the absence" of a master.\nChange\nopinion'
    assert list(english_prose.pages(tmp_path)) == [expected]


def test_a_debian_package_is_fetched_and_its_origin_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str, folder: Path) -> str:
        match command:
            case ("apt-get", "download", name):
                (folder / f"{name}_1.0.0-1_all.deb").write_bytes(b"archive")
            case ("dpkg-deb", "-x", _, into):
                data = Path(into) / "usr" / "lib" / "R" / "site-library" / "janeaustenr" / "data"
                about = Path(into) / "usr" / "share" / "doc" / "r-cran-janeaustenr"
                data.mkdir(parents=True)
                about.mkdir(parents=True)
                (data / "Rdata.rdb").write_bytes(database(serialised(NOVEL.split("\n"), 3)))
                (about / "copyright").write_text(COPYRIGHT)
            case ("dpkg-deb", "-f", _, "Version"):
                return "1.0.0-1\n"
        return ""

    monkeypatch.setattr(fetch, "run", run)
    monkeypatch.setattr(sys, "argv", ["english_prose.py", str(tmp_path / "out")])
    english_prose.main()
    assert [record["text"] for record in sources.read([str(tmp_path / "out")])] == CHAPTERS
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["licence"] == "MIT"
    assert manifest["sha256"] == hashlib.sha256(b"archive").hexdigest()


def test_a_client_that_is_missing_or_fails_ends_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no-such-client is not installed"):
        fetch.run("no-such-client", folder=tmp_path)
    with pytest.raises(SystemExit, match="false failed"):
        fetch.run("false", folder=tmp_path)


def test_what_the_files_lack_is_made_up(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    data = Data(text=(str(file),), num_stories=2, num_solutions=1, num_chats=3, num_tasks=1, num_conversations=0)
    text, chat = {"text": "one"}, {"messages": [{"role": "user", "content": "two"}]}
    for held, num_documents, num_chats in ((text, 1, 4), (chat, 3, 1)):
        file.write_text(json.dumps(held))
        assert len(list(sources.documents(data))) == num_documents
        assert len(list(sources.chats(data))) == num_chats
