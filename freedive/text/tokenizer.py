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
"""Bytes of the longest text that is encoded, which takes some seconds of one core and about 1 GB of memory."""


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads.

    ``vocab_size`` is the highest id plus one; the model's embedding may be padded beyond it. ``stop_ids`` are the
    tokens that end an answer. ``roles`` maps bos_token, eos_token ... to their text. ``added_tokens`` are matched in a
    text before it is split; those in ``special_ids`` are not shown in an answer. ``strips_space``: a space at the start
    of an answer is not shown.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._make_core, self._token = vocabulary.core, vocabulary.token
        decoder = vocabulary.decoder
        self._decoder_bytes = read_decoder(json.loads(decoder.__getstate__()) if decoder else None)
        self.strips_space = self._decoder_bytes.strip_space
        self.added_tokens = vocabulary.added
        self.special_ids = vocabulary.special
        self._pieces: dict[int, bytes] = {}
        if self._decoder_bytes.byte_level:  # added tokens are not in the byte alphabet
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
        """Reads tokenizer.json and the configuration files. Raises UserError if they are missing or damaged."""
        return cls(read_hf_tokenizer(folder))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Builds the tokenizer of GGUF ``metadata``. Raises UserError if it is damaged or not supported."""
        return cls(read_gguf_tokenizer(metadata))

    @cached_property
    def _plain_core(self) -> tokenizers.Tokenizer:
        """A copy that encodes special tokens as ordinary text, which is a setting of the whole object."""
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.encode_special_tokens = True
        return core

    @cached_property
    def max_token_bytes(self) -> int:
        """Bytes of the longest token: a text of more than n times as many bytes has more than n tokens."""
        return max((len(self.token_bytes(index)) for index in range(self.vocab_size)), default=1)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """Returns the token ids of ``text``.

        ``add_special`` adds the BOS and EOS tokens of the model. ``parse_special`` encodes the spelling of a special
        token in the text as that token; without it, as ordinary characters. Raises ContextLengthExceeded before any
        work if the text must have more than ``max_tokens`` tokens, or has more than MAX_TEXT_BYTES bytes.
        """
        self._check_length(_num_bytes(text), max_tokens)
        ids: list[int] = self._encoding("encode_batch_fast", text, add_special, parse_special).ids
        return ids

    def encode_at(self, text: str) -> list[tuple[int, int, int]]:
        """Returns the token ids of ``text``, each with the character offsets of its start and end."""
        _num_bytes(text)
        encoding = self._encoding("encode_batch", text, add_special=False, parse_special=True)
        return [(index, *place) for index, place in zip(encoding.ids, encoding.offsets, strict=True)]

    def _encoding(self, method: str, text: str, add_special: bool, parse_special: bool) -> tokenizers.Encoding:
        """Encodes a batch of one text, because only batches are encoded without the interpreter's lock."""
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
        """Returns the text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        skip = self.special_ids if skip_special else frozenset()
        text = b"".join(self.token_bytes(index) for index in ids if index not in skip).decode(errors="replace")
        return text.removeprefix(" ") if self._decoder_bytes.strip_space else text

    def stream(
        self, *, skip_special: bool = True, continues: bool = False, is_visible: Callable[[str], bool] | None = None
    ) -> StreamDecoder:
        """Returns a decoder of single tokens. ``continues``: the tokens follow a text, so a leading space stays.

        Special tokens are skipped, except those for whose text ``is_visible`` is true.
        """
        skip = self.special_ids if skip_special else frozenset()
        if is_visible:
            skip -= {index for index in skip if is_visible(self.added_tokens[index])}
        return StreamDecoder(self.token_bytes, skip, self._decoder_bytes.strip_space and not continues)

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of ``token``, which may be part of a character; b"" for an id without a token."""
        piece = self._pieces.get(token)
        if piece is None:
            text = self._token(token)
            piece = self._pieces[token] = b"" if text is None else self._decoder_bytes.token_bytes(text)
        return piece

    def token_text(self, token: int) -> str:
        """Returns the text of one token, special or not; parts of characters become U+FFFD."""
        return self.token_bytes(token).decode(errors="replace")


def _num_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise UserError("The text has a lone surrogate", "Send well-formed Unicode") from None


class StreamDecoder:
    """Decodes a stream of tokens. All returned texts together equal :meth:`Tokenizer.decode` of all tokens."""

    def __init__(self, token_bytes: Callable[[int], bytes], skip: frozenset[int], strip_space: bool) -> None:
        self._token_bytes = token_bytes
        self._skip = skip
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Returns the text that ``token`` completes; an incomplete character is kept until its last byte."""
        return "" if token in self._skip else self._trimmed(self._utf8.decode(self._token_bytes(token)))

    def flush(self) -> str:
        """Returns the rest at the end of the stream: U+FFFD for an incomplete character, else ""."""
        return self._trimmed(self._utf8.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if text and self._strip_space:
            self._strip_space = False
            return text.removeprefix(" ")
        return text
