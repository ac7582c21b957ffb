"""Small tokenizers, trained in the tests by the libraries whose behaviour freedive matches."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

WORDS = [
    "the cat sat on the mat",
    "what is the capital of France?",
    "naïve café déjà vu",
    "中文分词很有趣",
    "日本語の文章",
]
CORPUS = [f"{a} {b} {number}" for number, a in enumerate(WORDS) for b in WORDS] * 4


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a byte-level BPE tokenizer.json like Qwen's."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_tokens(["<think>"])
    core.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", core.token_to_id("<|im_start|>"))]
    )
    folder = tmp_path_factory.mktemp("byte_level")
    core.save(str(folder / "tokenizer.json"))
    end = {"__type": "AddedToken", "content": "<|im_end|>", "normalized": False, "special": True}
    config = {"bos_token": "<|im_start|>", "eos_token": end, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    return folder


@pytest.fixture(scope="session")
def train_sentencepiece() -> Callable[..., sentencepiece.SentencePieceProcessor]:
    """Trains a SentencePiece BPE model with byte fallback; keyword arguments go to the trainer."""

    def train(**options: Any) -> sentencepiece.SentencePieceProcessor:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=model,
            model_type="bpe",
            vocab_size=400,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
            **options,
        )
        processor: sentencepiece.SentencePieceProcessor = sentencepiece.SentencePieceProcessor(
            model_proto=model.getvalue()
        )
        return processor

    return train


@pytest.fixture(scope="session")
def sentencepiece_model(
    train_sentencepiece: Callable[..., sentencepiece.SentencePieceProcessor],
) -> sentencepiece.SentencePieceProcessor:
    return train_sentencepiece()


@pytest.fixture(scope="session")
def as_gguf() -> Callable[[sentencepiece.SentencePieceProcessor], dict[str, Any]]:
    """Converts a SentencePiece model to GGUF metadata as llama.cpp's converter does."""

    def kind(model: sentencepiece.SentencePieceProcessor, index: int) -> int:
        flags = {2: model.is_unknown, 3: model.is_control, 5: model.is_unused, 6: model.is_byte}
        return next((number for number, flag in flags.items() if flag(index)), 1)

    def convert(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
        ids = range(model.get_piece_size())
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [model.id_to_piece(index) for index in ids],
            "tokenizer.ggml.scores": [model.get_score(index) for index in ids],
            "tokenizer.ggml.token_type": [kind(model, index) for index in ids],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }

    return convert
