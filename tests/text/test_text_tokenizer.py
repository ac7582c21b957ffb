"""Tokenizers of model folders, and incremental decoding."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from transformers import PreTrainedTokenizerFast

from freedive.errors import ContextLengthExceeded, NotFound, UserError
from freedive.text.tokenizer import MAX_TEXT_BYTES, Tokenizer

SAMPLES = ["the cat", " the cat ", "naïve 👩‍👩‍👧 中文\n\n", "<|im_start|>the<|im_end|>\n<think>x", "", "e\u0301 \u200b"]


@pytest.fixture(scope="module")
def byte_level(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(byte_level_folder)


@pytest.fixture(scope="module")
def space_marks(sentencepiece_model: Any, as_gguf: Callable[[Any], dict[str, Any]]) -> Tokenizer:
    return Tokenizer.from_gguf(as_gguf(sentencepiece_model))


@pytest.mark.parametrize("text", SAMPLES)
def test_folders_are_read_as_transformers_reads_them(byte_level: Tokenizer, byte_level_folder: Path, text: str) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(byte_level_folder)
    assert byte_level.vocab_size == len(theirs)
    assert byte_level.bos_id == theirs.bos_token_id
    assert byte_level.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert byte_level.encode(text, add_special=True) == theirs.encode(text)
    ids = theirs.encode(text)
    for skip in (True, False):
        assert byte_level.decode(ids, skip_special=skip) == theirs.decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )


def test_stop_ids_come_from_all_files(byte_level: Tokenizer) -> None:
    assert byte_level.stop_ids == {0, 2}


@pytest.mark.parametrize("add_bos", [True, False])
def test_add_bos_token_counts_where_tokenizer_json_is_silent(
    byte_level_folder: Path, tmp_path: Path, add_bos: bool
) -> None:
    core = json.loads((byte_level_folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": add_bos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    expected = ("<|im_start|>" if add_bos else "") + "the cat"
    assert tokenizer.encode("the cat", add_special=True) == tokenizer.encode(expected)


TOKENS = st.lists(st.integers(0, 10_000))
TEXT = st.text(st.one_of(st.sampled_from(" \n👩\u200d👧🏽中文e\u0301é"), st.characters(exclude_categories=["Cs"])))


@settings(max_examples=150, deadline=None)
@given(text=TEXT, noise=TOKENS, skip=st.booleans())
@pytest.mark.parametrize("kind", ["byte_level", "space_marks"])
def test_a_stream_equals_the_whole(
    request: pytest.FixtureRequest, kind: str, text: str, noise: list[int], skip: bool
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    ids = [*tokenizer.encode(text), *(token % tokenizer.vocab_size for token in noise), *tokenizer.encode(text)]
    stream = tokenizer.stream(skip_special=skip)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special=skip)


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
@pytest.mark.parametrize("kind", ["byte_level", "space_marks"])
def test_a_stream_of_good_text_never_shows_half_a_character(
    request: pytest.FixtureRequest, kind: str, text: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    text = text.replace("\ufffd", "").replace("▁", "")
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text, parse_special=False)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.flush() == ""
    assert "".join(pieces) == text


@settings(max_examples=150, deadline=None)
@given(noise=TOKENS)
def test_invalid_bytes_decode_as_in_the_tokenizers_library(
    byte_level: Tokenizer, byte_level_folder: Path, noise: list[int]
) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    ids = [token % byte_level.vocab_size for token in noise]
    assert byte_level.decode(ids) == theirs.decode(ids)


def test_a_character_appears_with_its_last_byte(byte_level: Tokenizer, space_marks: Tokenizer) -> None:
    for tokenizer in (byte_level, space_marks):
        ids = tokenizer.encode("🦜")
        stream = tokenizer.stream()
        pieces = [stream.push(token) for token in ids]
        assert len(ids) >= 4
        assert pieces == [""] * (len(ids) - 1) + ["🦜"]
        cut = tokenizer.stream()
        assert [cut.push(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
        assert cut.flush() == "\ufffd"


def test_the_space_that_the_encoder_adds_is_dropped_only_at_the_start(space_marks: Tokenizer) -> None:
    ids = space_marks.encode("the cat")
    assert space_marks.decode(ids) == "the cat"
    stream = space_marks.stream(continues=True)
    assert "".join(map(stream.push, ids)) == " the cat"
    assert space_marks.token_text(ids[0])[0] == " "


def test_an_id_without_a_token_is_no_text(byte_level: Tokenizer) -> None:
    assert byte_level.decode([100_000]) == ""


def test_half_a_surrogate_pair_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate"):
        byte_level.encode("a\ud83e")


@pytest.mark.parametrize(
    ("decoder", "tokens"),
    [
        (decoders.Metaspace(), ["▁the", "▁cat", "s"]),
        (
            decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
            ["▁a", "<0xC3>", "<0xA9>"],
        ),
        (decoders.Sequence([decoders.ByteLevel()]), ["Ġhi", "Ã", "©"]),
    ],
)
def test_decoders_spell_tokens_as_in_the_tokenizers_library(tmp_path: Path, decoder: Any, tokens: list[str]) -> None:
    vocab = {token: index for index, token in enumerate([*tokens, "?"])}
    core = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="?"))
    core.decoder = decoder
    core.add_special_tokens([AddedToken("<｜end▁of▁sentence｜>")])
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    ids = range(len(tokens))
    assert tokenizer.decode(ids) == core.decode(list(ids))
    assert tokenizer.stop_ids == {len(vocab)}


def _no_decoder(core: dict[str, Any]) -> None:
    core["decoder"] = None


def _word_piece(core: dict[str, Any]) -> None:
    core["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}


@pytest.mark.parametrize(("change", "says"), [(_no_decoder, "no decoder"), (_word_piece, "WordPiece")])
def test_decoders_that_cannot_stream_are_refused(
    byte_level_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    core = json.loads((byte_level_folder / "tokenizer.json").read_text())
    change(core)
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(UserError, match=says):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is damaged"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json is damaged"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3, "merges": []}}', "tokenizer.json is damaged"),
        ("tokenizer_config.json", b"[]", "its JSON is not an object"),
        ("tokenizer_config.json", b"{", r"tokenizer_config.json is damaged"),
        ("generation_config.json", b"\xff", r"generation_config.json is damaged"),
        ("generation_config.json", b'{"eos_token_id": [2, "x"]}', "generation_config.json names 'x'"),
        ("generation_config.json", b"[" * 100_000, r"generation_config.json is damaged"),
    ],
)
def test_damaged_files_are_named(byte_level_folder: Path, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    shutil.copytree(byte_level_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        Tokenizer.from_folder(tmp_path)


def test_a_bos_token_outside_the_vocabulary_is_named(byte_level_folder: Path, tmp_path: Path) -> None:
    core = json.loads((byte_level_folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "add_bos_token": True}))
    with pytest.raises(UserError, match="not in the vocabulary"):
        Tokenizer.from_folder(tmp_path)


ODD = [None, "", 0, -1, 2**70, 1.5, True, [], {}, "a", "$A", "(", ["x"], {"content": 3}]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_odd_entry_is_read_or_refused(
    byte_level_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "odd"
    shutil.copytree(byte_level_folder, folder, dirs_exist_ok=True)
    path = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "generation_config.json"]))
    content = json.loads(path.read_text())
    holder, key = data.draw(st.sampled_from(list(_entries(content))))
    holder[key] = data.draw(st.sampled_from(ODD))
    path.write_text(json.dumps(content))
    with contextlib.suppress(UserError):
        tokenizer = Tokenizer.from_folder(folder)
        tokenizer.decode(tokenizer.encode("the <|im_end|> é \0", add_special=True))


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the container and key of every value of a JSON tree, without single words and merges, which
    are too many."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield node, key
        if key not in ("vocab", "merges"):
            yield from _entries(child)


def test_a_folder_without_a_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_encoding_releases_the_interpreter_lock(byte_level: Tokenizer) -> None:
    """A thread that counts continues during an encoding."""
    text, counts, ended = "the cat sat " * 100_000, [0], threading.Event()

    def count() -> None:
        while not ended.is_set():
            counts[0] += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    num_before = counts[0]
    byte_level.encode(text)
    num_counts = counts[0] - num_before
    ended.set()
    counter.join()
    assert num_counts > 5  # a thread that held the lock would let it count once or twice


def test_texts_too_long_for_a_context_are_refused_before_they_are_encoded(
    byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert byte_level.max_token_bytes == max(len(byte_level.token_bytes(i)) for i in range(byte_level.vocab_size))
    longest = max((byte_level.token_text(i) for i in range(byte_level.vocab_size)), key=len)
    assert len(byte_level.encode(longest * 10, max_tokens=10)) == 10
    monkeypatch.setattr(Tokenizer, "_encoding", None)
    for text, limit in (("x" * (10 * byte_level.max_token_bytes + 1), 10), ("x" * (MAX_TEXT_BYTES + 1), None)):
        with pytest.raises(ContextLengthExceeded) as caught:
            byte_level.encode(text, max_tokens=limit)
        assert caught.value.code == "context_length_exceeded"


def test_special_tokens_are_read_or_not_beside_one_another(byte_level: Tokenizer) -> None:
    text = "<|im_start|>the"
    wanted = {parse: byte_level.encode(text, parse_special=parse) for parse in (True, False)}
    assert wanted[True] != wanted[False]
    with ThreadPoolExecutor(4) as pool:
        flags = [True, False] * 200
        assert list(pool.map(lambda parse: byte_level.encode(text, parse_special=parse), flags)) == [
            wanted[parse] for parse in flags
        ]
