"""The words of texts and of searches, for SQLite's full-text index.

The index splits texts at spaces and punctuation, which Chinese words do not have around them. So each character of such
a script is made a word of its own, and a Chinese word is searched as a phrase of its characters. The trigram tokenizer
of SQLite would find no Chinese word of one or two characters, and most have two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from unicodedata import combining, normalize

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_MAYBE_ACCENTED = re.compile(f"[^\\x00-\\x7f{_UNSPACED}]")
_PART = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")

MAX_TERMS = 12
MAX_TERM = 100
"""The most terms of a search, and characters of a term, that are looked at."""


def indexed(text: str) -> str:
    """Returns ``text`` as it is given to the index: with spaces around each character of an unspaced script."""
    return _CHARACTER.sub(r" \g<0> ", text.replace("\0", " "))


@dataclass(frozen=True)
class Term:
    """A term of a search: a phrase of ``parts``. The last term of a search also matches longer words."""

    parts: tuple[str, ...]
    is_prefix: bool = False

    @property
    def match(self) -> str:
        """The term in the query language of the index: quoted, so that no character of a search is an operator."""
        may_continue = self.is_prefix and not _CHARACTER.fullmatch(self.parts[-1])
        return f'"{" ".join(self.parts)}"' + (" *" if may_continue else "")

    @property
    def pattern(self) -> re.Pattern[str]:
        """What the term matches in a text, apart from accents."""
        end = "" if self.is_prefix or _CHARACTER.fullmatch(self.parts[-1]) else r"(?![^\W_])"
        start = "" if _CHARACTER.fullmatch(self.parts[0]) else r"(?<![^\W_])"
        start = f"(?:{start}|(?<=[{_UNSPACED}]))" if start else ""
        end = f"(?:{end}|(?=[{_UNSPACED}]))" if end else ""
        return re.compile(start + r"[\W_]{0,9}".join(map(re.escape, self.parts)) + end, re.IGNORECASE)


def terms(query: str) -> list[Term]:
    """Returns the terms of a search: its words, split at spaces; [] if it has no letter and no digit."""
    words = normalize("NFC", query[: MAX_TERM * MAX_TERMS]).split()
    found = [tuple(_PART.findall(word[:MAX_TERM])) for word in words]
    phrases = list(dict.fromkeys(parts for parts in found if parts))[:MAX_TERMS]
    return [Term(parts, is_prefix=parts is phrases[-1]) for parts in phrases]


def without_accents(text: str) -> str:
    """Returns ``text`` with the base letter for each accented one; it has as many characters as ``text``."""
    return text if text.isascii() else _MAYBE_ACCENTED.sub(lambda match: _base(match[0]), text)


@lru_cache(4096)
def _base(character: str) -> str:
    base, *marks = list(normalize("NFD", character))
    return base if all(map(combining, marks)) else character  # a Korean syllable consists of letters, not of marks
