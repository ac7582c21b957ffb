"""Writes grammars in llguidance's Lark; each method returns an expression for the rules of the same grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any


def quoted(text: str) -> str:
    """Returns an expression that matches exactly ``text``, spelled in ordinary tokens."""
    return json.dumps(text, ensure_ascii=False)


def any_of(choices: Collection[str]) -> str:
    """Returns an expression that matches one of the expressions ``choices``."""
    return f"({' | '.join(choices)})"


class Lark:
    """One grammar. Its ``tokens`` are special: they match only where a literal has them, and no other text."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self.parts: list[Mapping[str, Any]] = []
        self._tokens = tokens
        self._special = re.compile(f"({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True))) or '(?!)'})")
        self._rules = ["ANY: /(?s:.*)/", r"SPACE: /[ \n]{1,4}/"]

    def literal(self, text: str) -> str:
        """Returns an expression that matches exactly ``text``, with special tokens by their ids."""
        pieces = [piece for piece in self._special.split(text) if piece]
        return " ".join(f"<[{self._tokens[piece]}]>" if piece in self._tokens else quoted(piece) for piece in pieces)

    def literals(self, texts: Collection[str]) -> str:
        """Returns an expression that matches one of ``texts``."""
        return any_of([self.literal(text) for text in texts])

    def free(self, without: Collection[str] = ()) -> str:
        """Returns an expression that matches any text without the strings ``without``."""
        return self.terminal(f"ANY & ~(ANY {any_of([*map(quoted, without)])} ANY)") if without else "ANY"

    def until(self, ends: Collection[str], without: Collection[str] = (), like: str = "ANY") -> str:
        """Returns an expression that matches any text up to and including the first of ``ends``.

        The text before the end has none of the strings ``without``, and matches ``like``, a Lark regular expression.
        """
        plain = [end for end in ends if not self._special.search(end)]
        inner = self.free([text for text in without if text not in plain])
        inner = inner if like == "ANY" else self.terminal(f"{inner} & {like}")
        ways = []
        if plain:
            ways.append(self._rule(self.terminal(f"{inner} {any_of([*map(quoted, plain)])}"), "[lazy]"))
        for end in (end for end in ends if end not in plain):
            lead, *_ = self._special.split(end)
            text = self.terminal(f"{inner} {quoted(lead)}") if lead else inner
            ways.append(f"{text} {self.literal(end.removeprefix(lead))}")
        return any_of(ways)

    def part(self, grammar: Mapping[str, Any]) -> str:
        """Returns an expression that matches another grammar."""
        self.parts.append(grammar)
        return f"@p{len(self.parts) - 1}"

    def rules(self, start: str) -> str:
        """Returns the whole grammar, whose start rule is the expression ``start``."""
        return "\n".join([f"start: {start}", *self._rules])

    def terminal(self, body: str) -> str:
        """Adds a terminal with the Lark regular expression ``body``, and returns its name."""
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _rule(self, body: str, options: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name
