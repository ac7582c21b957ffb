"""Tokenizers that are built from GGUF metadata match the programs that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35

from freedive.errors import UserError
from freedive.text.gguf_tokenizer import merges_by_score
from freedive.text.pretokenizers import PRE_TOKENIZERS
from freedive.text.tokenizer import Tokenizer

TEXT = st.text(st.one_of(st.sampled_from("the cat sat 中文文 aé\n\t"), st.characters(exclude_categories=["Cs"])))


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    fields = gguf.GGUFReader(smollm2_path).fields
    return Tokenizer.from_gguf({name: field.contents() for name, field in fields.items() if "." in name})


@pytest.fixture(scope="module")
def space_marks(sentencepiece_model: Any, as_gguf: Callable[[Any], dict[str, Any]]) -> Tokenizer:
    return Tokenizer.from_gguf(as_gguf(sentencepiece_model))


# Ids from llama.cpp (llama-cpp-python 0.3.36) on the same file.
LLAMA_CPP = {
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n": (
        [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    ),
    "Hello wörld 🦜 123<|im_end|>": [19556, 267, 29989, 400, 15107, 116, 246, 216, 33, 34, 35, 2],
}


@pytest.mark.parametrize("text", LLAMA_CPP)
def test_the_default_model_is_tokenized_as_by_llama_cpp(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.encode(text) == LLAMA_CPP[text]
    assert smollm2.decode(LLAMA_CPP[text], skip_special=False) == text


def test_the_default_model_knows_its_special_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.bos_id == 1
    assert smollm2.stop_ids == {0, 2}  # <|endoftext|>, <|im_end|>
    assert smollm2.encode("hi", add_special=True) == smollm2.encode("hi")  # the file disables bos
    assert smollm2.decode(smollm2.encode("<|im_start|>hi<|im_end|>")) == "hi"
    written_out = smollm2.encode("<|im_end|>", parse_special=False)
    assert len(written_out) > 1
    assert smollm2.decode(written_out) == "<|im_end|>"


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_scores_give_the_same_pieces_as_sentencepiece(
    sentencepiece_model: Any, space_marks: Tokenizer, text: str
) -> None:
    # sentencepiece does not distinguish the mark of a space from a space, and skips a NUL.
    text = text.replace("▁", "").replace("\0", "")
    ids = space_marks.encode(text, parse_special=False)
    assert ids == sentencepiece_model.encode(text)
    assert space_marks.decode(ids) == text


def test_a_list_of_merges_replaces_scores(
    train_sentencepiece: Callable[..., Any], as_gguf: Callable[[Any], dict[str, Any]]
) -> None:
    model = train_sentencepiece(add_dummy_prefix=False)
    metadata = as_gguf(model)
    pieces = dict(zip(metadata["tokenizer.ggml.tokens"], metadata.pop("tokenizer.ggml.scores"), strict=True))
    merges = [" ".join(pair) for pair in merges_by_score(pieces)]
    tokenizer = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.merges": merges})
    for text in ("the cat", " the cat", "  two  spaces ", "中文 café", "\n"):
        assert tokenizer.encode(text) == model.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_without_a_dummy_prefix(
    train_sentencepiece: Callable[..., Any], as_gguf: Callable[[Any], dict[str, Any]]
) -> None:
    model = train_sentencepiece(add_dummy_prefix=False)
    tokenizer = Tokenizer.from_gguf(as_gguf(model) | {"tokenizer.ggml.add_space_prefix": False})
    for text in ("the cat", " the cat", "  two  spaces ", "中文 café", "\n"):
        assert tokenizer.encode(text) == model.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_models_begin_with_bos(
    sentencepiece_model: Any, as_gguf: Callable[[Any], dict[str, Any]]
) -> None:
    metadata = as_gguf(sentencepiece_model)
    plain = sentencepiece_model.encode("the cat")
    assert Tokenizer.from_gguf(metadata).encode("the cat", add_special=True) == [1, *plain]
    both = metadata | {"tokenizer.ggml.add_eos_token": True}
    assert Tokenizer.from_gguf(both).encode("the cat", add_special=True) == [1, *plain, 2]
    neither = metadata | {"tokenizer.ggml.add_bos_token": False}
    assert Tokenizer.from_gguf(neither).encode("the cat", add_special=True) == plain


def byte_level(**changes: Any) -> dict[str, Any]:
    """Returns a byte-level vocabulary of the 256 bytes, two merges, one control and one user-defined token."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "hel", "<|im_end|>", "<think>"]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "merges": ["h e", "he l"],
        "token_type": [1] * 258 + [3, 4],
        "eos_token_id": 258,
    } | changes
    return {f"tokenizer.ggml.{name}": value for name, value in metadata.items() if value is not None}


def test_user_defined_tokens_are_whole_but_not_special() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    ids = tokenizer.encode("<think>hel<|im_end|>")
    assert ids == [259, 257, 258]
    assert tokenizer.decode(ids) == "<think>hel"
    assert tokenizer.token_text(258) == "<|im_end|>"
    assert tokenizer.encode("<think>", parse_special=False) == [259]


@pytest.mark.parametrize(
    ("message_end", "other", "stops"),
    [
        ("<|end|>", "<|return|>", {259}),  # gpt-oss
        ("<|end|>", "<|flush|>", {259}),  # Solar Open
        ("<|eom|>", "<|message|>", set()),  # Muse Glimmer
        ("<|eom|>", "<|eot|>", {258, 259}),  # Llama 4
    ],
)
def test_the_end_of_a_message_that_others_may_follow_does_not_end_the_answer(
    message_end: str, other: str, stops: set[int]
) -> None:
    tokens = [*byte_level()["tokenizer.ggml.tokens"][:258], message_end, other]
    metadata = byte_level(tokens=tokens, token_type=[1] * 258 + [3, 3], eos_token_id=0)
    assert Tokenizer.from_gguf(metadata).stop_ids == {0, *stops}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_known_pre_tokenizer_builds_and_round_trips(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(pre=name))
    text = "I'm 12345, camelCase ÀÉ 中文。\r\n\n  ½ 👩‍👧 x=1;"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("name", "pattern"), [("qwen2", QWEN2), ("qwen35", QWEN35)])
def test_patterns_split_as_the_makers_do(name: str, pattern: str) -> None:
    ours = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[name].patterns[0]), behavior="isolated")
    theirs = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    text = "I'M Don't camelCase हिन्दी 12345 ½Ⅷ  \n\n\t x.y/z !!!\r\n  中文。é e\u0301 'ſ \u3000a"
    assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("smollm", "ab 123", ["ab", " ", "1", "2", "3"]),
        ("llama-bpe", "ab 12345", ["ab", " ", "123", "45"]),
        ("gpt-4o", "camelCase'S 1", ["camel", "Case'S", " ", "1"]),
        ("deepseek-llm", "Привет 12 中文x", ["Привет", " ", "1", "2", " ", "中文", "x"]),
        ("deepseek-v3", "中文x 1234.net", ["中文", "x", " ", "123", "4", ".net"]),
        ("kimi-k2", "中文English", ["中文", "English"]),
    ],
)
def test_patterns_cut_where_the_papers_say(name: str, text: str, pieces: list[str]) -> None:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PRE_TOKENIZERS[name].patterns]
    assert [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": None}, "has no tokenizer.ggml.model"),
        ({"model": "rwkv"}, "'rwkv' is not supported"),
        ({"pre": "martian"}, "'martian' is not supported. Use a model with one of: .*smollm"),
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokens": "abc"}, "malformed tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, "malformed tokenizer.ggml.tokens"),
        ({"tokens": []}, "empty"),
        ({"tokens": ["a", "a"]}, "same token twice"),
        ({"token_type": [1]}, "malformed tokenizer.ggml.token_type"),
        ({"merges": [7]}, "malformed tokenizer.ggml.merges"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"eos_token_id": True}, "names True"),
        ({"eos_token_id": "2"}, "names '2'"),
        ({"add_bos_token": "yes"}, "malformed tokenizer.ggml.add_bos_token"),
        ({"add_bos_token": 2}, "malformed tokenizer.ggml.add_bos_token"),
        ({"model": "llama"}, "has no tokenizer.ggml.scores"),
        ({"model": "llama", "scores": [0.0]}, "malformed tokenizer.ggml.scores"),
    ],
)
def test_damaged_metadata_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Tokenizer.from_gguf(byte_level(**changes))


@pytest.mark.parametrize("index", [2**32 - 1, 260, -1])
@pytest.mark.parametrize("role", ["eos", "bos", "padding", "unknown", "eot"])
def test_ids_past_the_vocabulary_are_reported_and_ignored(
    role: str, index: int, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(**{f"{role}_token_id": index}))
    assert f"tokenizer.ggml.{role}_token_id names {index}" in caplog.text
    assert tokenizer.stop_ids == {258}  # the well-known end-of-turn token remains
    assert tokenizer.bos_id is None
    assert tokenizer.encode("hel", add_special=True) == [257]


@pytest.mark.parametrize("flag", [True, 1])
def test_flags_may_be_numbers(flag: int) -> None:
    assert Tokenizer.from_gguf(byte_level(bos_token_id=258, add_bos_token=flag)).encode("hel", add_special=True) == [
        258,
        257,
    ]


def test_a_merge_of_an_unknown_token_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    plain = Tokenizer.from_gguf(byte_level())
    for merge in ("h q", "qu x", "hel o"):
        more = Tokenizer.from_gguf(byte_level(merges=["h e", merge, "he l"]))
        assert more.encode("hello, quiet hq") == plain.encode("hello, quiet hq")
        assert "1 merges name tokens" in caplog.text


@pytest.mark.parametrize("merges", [["h e", "he"], ["h e", "h e l"], ["q q"]])
def test_damaged_merges_are_named_with_the_first_text(merges: list[str]) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(merges=merges))
    assert tokenizer.token_text(0)
    for _ in range(2):
        with pytest.raises(UserError, match="merges do not fit"):
            tokenizer.encode("he")
