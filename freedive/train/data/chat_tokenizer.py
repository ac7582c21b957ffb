"""The tokenizer of a run: byte-level BPE in which each digit is a token, and the special tokens of a chat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from freedive.text.tokenizer import Tokenizer

BOS, END, SYSTEM, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (BOS, END, SYSTEM, USER, ASSISTANT, "<think>", "</think>")

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Splits text into words, single digits, punctuation and spaces, as Qwen2 does; ``GGUF_PRE`` is llama.cpp's name for
it."""

GGUF_PRE = "qwen2"

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Messages = Sequence[dict[str, Any]]


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Learns a vocabulary from ``texts`` and writes it to ``folder`` in the format of transformers."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Core

    core = Core(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return Tokenizer.from_folder(folder)


class ChatTokenizer:
    """Encodes documents and chats as tokens, with a loss weight for each token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids = {text: index for index, text in tokenizer.added_tokens.items()}
        self.bos, self.end = self.ids[BOS], self.ids[END]

    def document(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the tokens of a whole text and their loss weights, which are all 1."""
        tokens = [self.bos, *self.tokenizer.encode(text, parse_special=False), self.end]
        return tokens, [1] * len(tokens)

    def opening(self) -> list[int]:
        """Returns the tokens that precede the first word of a text."""
        return [self.bos]

    def user_prompt(self, text: str) -> list[int]:
        """Returns a prompt that asks for an answer to ``text``."""
        return self.prompt([{"role": "user", "content": text}])

    def prompt(self, messages: Messages) -> list[int]:
        """Returns a prompt that asks for an answer to the last of ``messages``."""
        return [*self.chat(messages)[0], self.ids[ASSISTANT]]

    def chat(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Returns the tokens of a chat, as the template writes it, and their loss weights.

        The weight is 1 for what the assistant says and for the end token after it, unless its message has ``weight`` 0.
        """
        tokens, weights = [self.bos], [0]
        for message in messages:
            is_assistant = message["role"] == "assistant"
            content = [*self.tokenizer.encode(message["content"], parse_special=is_assistant), self.end]
            tokens += [self.ids[f"<|{message['role']}|>"], *content]
            weights += [0, *[int(is_assistant and message.get("weight", 1))] * len(content)]
        return tokens, weights

    def answer_text(self, answer: Sequence[int]) -> str:
        """Returns the text of an answer: with the marks of thoughts, without the end token."""
        ended = bool(answer) and answer[-1] == self.end
        return self.tokenizer.decode(answer[: -1 if ended else None], skip_special=False)


def encode_record(record: dict[str, Any], chat_tokenizer: ChatTokenizer) -> tuple[list[int], list[int]]:
    """Encodes a training record, {"text": ...} or {"messages": [...]}, as tokens and loss weights."""
    return chat_tokenizer.chat(record["messages"]) if "messages" in record else chat_tokenizer.document(record["text"])
