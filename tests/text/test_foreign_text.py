"""Tokenizer files and chat templates of users: byte order marks, nulls, empty templates, other locations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from freedive.errors import UserError
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer

BOM = b"\xef\xbb\xbf"
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(byte_level_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(byte_level_folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_byte_order_mark_of_a_file_is_ignored(name: str, folder: Path) -> None:
    plain = Tokenizer.from_folder(folder)
    (folder / name).write_bytes(BOM + (folder / name).read_bytes())
    marked = Tokenizer.from_folder(folder)
    assert marked.encode("Hello, world") == plain.encode("Hello, world")
    assert (marked.stop_ids, marked.roles) == (plain.stop_ids, plain.roles)


def test_a_byte_order_mark_of_a_template_is_ignored(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(BOM + b"{{ messages[0].content }}")
    assert ChatTemplate.from_folder(folder, Tokenizer.from_folder(folder)).render(CHAT) == "hi"


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_template_is_none(empty: str, folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    (folder / "chat_template.jinja").write_text(empty)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": empty}))
    templates = [ChatTemplate.from_folder(folder, tokenizer)]
    templates.append(ChatTemplate.from_gguf({"tokenizer.chat_template": empty}, tokenizer))
    for template in templates:
        with pytest.raises(UserError, match="no chat template"):
            template.render(CHAT)


def test_a_template_may_be_in_chat_template_json(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.json").write_text('{"chat_template": "json: {{ messages[0].content }}"}')
    assert ChatTemplate.from_folder(folder, tokenizer).render(CHAT) == "json: hi"
    (folder / "chat_template.jinja").write_text("jinja")
    assert ChatTemplate.from_folder(folder, tokenizer).render(CHAT) == "jinja"


@pytest.mark.parametrize("eos", [[None, 2], [2, None], [2, 10**9], 10**9, None])
def test_ends_that_are_null_or_past_the_vocabulary_are_not_used(eos: object, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2 if isinstance(eos, list) else None}))
    expected = Tokenizer.from_folder(folder).stop_ids
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert Tokenizer.from_folder(folder).stop_ids == expected
