"""The bytes of each token: the decoder of a tokenizer.json, applied to single tokens.

With the bytes of every token, decoding is concatenation: a stream takes constant time per token, and a character in
several tokens is an incomplete UTF-8 sequence until its last token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from freedive.errors import UserError

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's byte alphabet: printable Latin-1 maps to itself, the characters from U+0100 on to other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


@dataclass(frozen=True)
class TokenBytes:
    """A decoder. ``strip_space``: the encoder adds a space before the text, which decoding removes."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_space: bool = False

    def token_bytes(self, token: str) -> bytes:
        """Returns the bytes of a token, which is given in the spelling of the vocabulary."""
        if self.byte_level and all(char in _BYTES for char in token):
            return bytes(_BYTES[char] for char in token)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()


def read_decoder(decoder: Mapping[str, Any] | None) -> TokenBytes:
    """Returns the decoder that the ``decoder`` entry of a tokenizer.json describes.

    Raises UserError for a decoder that does not work on single tokens (WordPiece, regular expressions, ...).
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
                    f"The decoder of this tokenizer is not supported ({name})",
                    "Use a model whose tokenizer.json has a ByteLevel, ByteFallback or Metaspace decoder",
                )
    return result
