"""The bytes of each token: the decoder of a tokenizer.json, applied token by token.

Knowing the bytes of every token makes decoding a concatenation, so that a stream costs the same per token however long
it is, and a character cut into several tokens is simply an unfinished byte sequence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from freedive.errors import UserError

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


@dataclass(frozen=True)
class TokenBytes:
    """``strip_space``: the encoder puts a space before the text, which the decoded text does not have."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_space: bool = False

    def token_bytes(self, token: str) -> bytes:
        """The bytes of a token of the vocabulary, given as the vocabulary writes it."""
        if self.byte_level and all(char in _BYTES for char in token):
            return bytes(_BYTES[char] for char in token)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()


def read_decoder(decoder: Mapping[str, Any] | None) -> TokenBytes:
    """The decoder that a tokenizer.json's ``decoder`` entry describes.

    Raises UserError for a decoder that does not work token by token (WordPiece, regular expressions, ...).
    """
    parts = decoder.get("decoders", []) if decoder and decoder["type"] == "Sequence" else [decoder]
    result = TokenBytes()
    for part in parts:
        match part:
            case {"type": "ByteLevel"}:
                result = replace(result, byte_level=True)
            case {"type": "ByteFallback"}:
                result = replace(result, byte_fallback=True)
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                result = replace(result, replacements=(*result.replacements, (old, new)))
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                result = replace(result, strip_space=bool(start))
            case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
                marked = (*result.replacements, (mark, " "))
                result = replace(result, replacements=marked, strip_space=scheme != "never")
            case _:
                name = part["type"] if part else "no decoder"
                raise UserError(
                    f"This tokenizer turns tokens into text in a way that is not supported ({name})",
                    "Use a model whose tokenizer.json has a ByteLevel, ByteFallback or Metaspace decoder",
                )
    return result
