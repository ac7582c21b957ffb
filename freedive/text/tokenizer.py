"""Encodes text into tokens and decodes tokens, whole or as a stream."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from freedive.errors import ContextLengthExceeded, UserError
from freedive.text.gguf_tokenizer import read_gguf_tokenizer
from freedive.text.hf_tokenizer import read_hf_tokenizer
from freedive.text.token_bytes import read_decoder
from freedive.text.vocabulary import Vocabulary

MAX_TEXT_BYTES = 8 << 20
"""Longest text that is encoded: some seconds of one core, and about a GB of memory."""


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads.

    ``vocab_size`` is one more than the highest id; a model's own vocabulary may be padded beyond it.
    ``stop_ids`` are the tokens that end an answer. ``roles`` maps bos_token, eos_token ... to their text;
    ``added_tokens`` are the whole tokens, special or not, that text is searched for before it is split; those in
    ``special_ids`` are not shown. ``strips_space``: a space at the start of an answer is not shown either.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._make_core, self._token = vocabulary.core, vocabulary.token
        decoder = vocabulary.decoder
        self._decoder_bytes = read_decoder(json.loads(decoder.__getstate__()) if decoder else None)
        self.strips_space = self._decoder_bytes.strip_space
        self.added_tokens = vocabulary.added
        self.special_ids = vocabulary.special
        self._pieces: dict[int, bytes] = {}
        if self._decoder_bytes.byte_level:  # added tokens are written as they are, not in the byte alphabet
            self._pieces = {index: text.encode() for index, text in self.added_tokens.items()}
        self.vocab_size = vocabulary.size
        self.roles = vocabulary.roles
        self.stop_ids = vocabulary.stop_ids
        self.bos_id = vocabulary.bos_id

    @cached_property
    def _core(self) -> tokenizers.Tokenizer:
        return self._make_core()

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json and the configuration files beside it; UserError if missing or damaged."""
        return cls(read_hf_tokenizer(folder))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokenizer that GGUF metadata (key -> Python value) describes; UserError if it cannot be used."""
        return cls(read_gguf_tokenizer(metadata))

    @cached_property
    def _plain_core(self) -> tokenizers.Tokenizer:
        """Another that takes special tokens for ordinary text: whether it does belongs to a core, not to a call."""
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.encode_special_tokens = True
        return core

    @cached_property
    def max_token_bytes(self) -> int:
        """Bytes of the longest token: no text of more than n times as many is n tokens or fewer."""
        return max((len(self.token_bytes(index)) for index in range(self.vocab_size)), default=1)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """The token ids of ``text``.

        ``add_special`` adds what the model expects around a text (bos, eos). ``parse_special`` reads special tokens
        that are written out in the text as such; without it they are ordinary characters. A text whose length tells
        that it has more than ``max_tokens`` is refused before any work is done, as is one beyond MAX_TEXT_BYTES.
        """
        self._check_length(_num_bytes(text), max_tokens)
        ids: list[int] = self._encoding("encode_batch_fast", text, add_special, parse_special).ids
        return ids

    def encode_at(self, text: str) -> list[tuple[int, int, int]]:
        """The token ids of ``text``, each with the places in it where the token begins and ends, in characters."""
        _num_bytes(text)
        encoding = self._encoding("encode_batch", text, add_special=False, parse_special=True)
        return [(index, *place) for index, place in zip(encoding.ids, encoding.offsets, strict=True)]

    def _encoding(self, method: str, text: str, add_special: bool, parse_special: bool) -> tokenizers.Encoding:
        """Batches, even of one text, are encoded without the interpreter's lock, and single texts with it."""
        core = self._core if parse_special else self._plain_core
        encodings: list[tokenizers.Encoding] = getattr(core, method)([text], add_special_tokens=add_special)
        return encodings[0]

    def _check_length(self, num_bytes: int, max_tokens: int | None) -> None:
        if max_tokens is not None and num_bytes > max_tokens and num_bytes > max_tokens * self.max_token_bytes:
            at_least = num_bytes // self.max_token_bytes
            raise ContextLengthExceeded(
                f"The prompt has more than {at_least} tokens, but this model's maximum context length is {max_tokens}",
                "Shorten the prompt",
                param="prompt",
            )
        if num_bytes > MAX_TEXT_BYTES:
            limit = f"{MAX_TEXT_BYTES >> 20} MiB"
            raise ContextLengthExceeded(f"The text is longer than {limit}", "Send less at once", param="prompt")

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        skip = self.special_ids if skip_special else frozenset()
        text = b"".join(self.token_bytes(index) for index in ids if index not in skip).decode(errors="replace")
        return text.removeprefix(" ") if self._decoder_bytes.strip_space else text

    def stream(
        self, *, skip_special: bool = True, continues: bool = False, is_visible: Callable[[str], bool] | None = None
    ) -> StreamDecoder:
        """A decoder that takes one token at a time. ``continues``: the tokens follow a text, so a first space stays.

        Special tokens are skipped, except those whose text satisfies ``is_visible``, such as a dialect's method of that
        name.
        """
        skip = self.special_ids if skip_special else frozenset()
        if is_visible:
            skip -= {index for index in skip if is_visible(self.added_tokens[index])}
        return StreamDecoder(self.token_bytes, skip, self._decoder_bytes.strip_space and not continues)

    def token_bytes(self, token: int) -> bytes:
        """What ``token`` adds to a text, perhaps part of a character; nothing for an id without a token."""
        piece = self._pieces.get(token)
        if piece is None:
            text = self._token(token)
            piece = self._pieces[token] = b"" if text is None else self._decoder_bytes.token_bytes(text)
        return piece

    def token_text(self, token: int) -> str:
        """``token`` on its own, special or not; parts of characters become U+FFFD."""
        return self.token_bytes(token).decode(errors="replace")


def _num_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise UserError("The text holds half of a surrogate pair", "Send well-formed Unicode") from None


class StreamDecoder:
    """Turns tokens into text as they come. All texts together equal :meth:`Tokenizer.decode` of all tokens."""

    def __init__(self, token_bytes: Callable[[int], bytes], skip: frozenset[int], strip_space: bool) -> None:
        self._token_bytes = token_bytes
        self._skip = skip
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is certain after ``token``: a character that is not complete yet is held back."""
        return "" if token in self._skip else self._trimmed(self._utf8.decode(self._token_bytes(token)))

    def flush(self) -> str:
        """What is held back at the end: U+FFFD for a character that was never completed, otherwise nothing."""
        return self._trimmed(self._utf8.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if text and self._strip_space:
            self._strip_space = False
            return text.removeprefix(" ")
        return text
