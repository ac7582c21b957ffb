"""Generates random text that a constraint allows, like a model without knowledge."""

from __future__ import annotations

import json
import random
from functools import cache

import numpy as np

from freedive.checkpoint.open import open_checkpoint
from freedive.hub.sources import resolve
from freedive.text.grammar_constraint import GrammarConstraint
from freedive.text.tokenizer import Tokenizer

WORDS = frozenset(map(ord, '"{}[],:0123456789. abcxyz\n<>/'))


@cache
def smollm2() -> Tokenizer:
    """Returns the default model's tokenizer: 49152 tokens, many of which contain a quote and a brace."""
    return Tokenizer.from_gguf(open_checkpoint(resolve("smollm2")).config)


def allowed(constraint: GrammarConstraint, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the allowed tokens, bool [vocab_size]."""
    return np.unpackbits(constraint.allowed(), count=tokenizer.vocab_size, bitorder="little").astype(np.bool_)


def write(constraint: GrammarConstraint, tokenizer: Tokenizer, seed: int, longest: int = 300) -> str | None:
    """Returns a random text that ``constraint`` allows, or None if it does not end within ``longest`` tokens.

    Tokens are drawn from all allowed ones or from the plain ones, and the end is usually taken when it is allowed.
    """
    rng = random.Random(seed)
    tokens: list[int] = []
    for _ in range(longest):
        token = _draw(allowed(constraint, tokenizer), tokenizer, rng)
        constraint.take(token)
        if token in tokenizer.stop_ids:
            return tokenizer.decode(tokens, skip_special=False)
        tokens.append(token)
        if constraint.complete:
            return tokenizer.decode(tokens, skip_special=False)
    return None


def follow(constraint: GrammarConstraint, tokenizer: Tokenizer, text: str) -> bool:
    """Feeds ``text`` to the constraint up to a token that is not allowed; returns whether there was none."""
    for token in tokenizer.encode(text):
        if not allowed(constraint, tokenizer)[token]:
            return False
        constraint.take(token)
    return True


def _draw(may: np.ndarray, tokenizer: Tokenizer, rng: random.Random) -> int:
    ends = [token for token in tokenizer.stop_ids if may[token]]
    if ends and rng.random() < 0.6:
        return rng.choice(ends)
    plain = may & _plain(tokenizer)
    ids = np.flatnonzero(plain if rng.random() < 0.8 and plain.any() else may)
    return int(ids[rng.randrange(len(ids))])


@cache
def _plain(tokenizer: Tokenizer) -> np.ndarray:
    pieces = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    return np.array([{*piece} <= WORDS and bool(piece) for piece in pieces])


def valid_json(text: str) -> object:
    """Parses ``text``; NaN and Infinity are not JSON."""
    return json.loads(text, parse_constant=lambda name: 1 / 0)
