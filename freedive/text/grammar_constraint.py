"""Constrains answers to a grammar, token by token, with llguidance."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from freedive.errors import UserError
from freedive.text import grammar_pool
from freedive.text.format import MAX_LENGTH
from freedive.text.grammar_worker import SERVER_STACK, Vocabulary, compile_grammar, on_stack
from freedive.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

Grammar = Mapping[str, Any]
"""A grammar in llguidance's format: {"lark_grammar": ...} or {"json_schema": ...}."""

MAX_RENEWAL_S = 0.05
"""Seconds of compilation that the engine may wait for during a step."""

NUM_CACHED = 64
"""The number of compiled grammars in the cache."""


class GrammarConstraint:
    """Constrains one answer to a grammar; see :class:`freedive.engine.constraint.TokenConstraint`."""

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._compiled = compiled
        self._matcher = compiled.matcher()
        self._tokens: list[int] = []

    @property
    def complete(self) -> bool:
        """Whether the answer is complete and must end."""
        return self._matcher.is_stopped()

    def allowed(self) -> npt.NDArray[np.uint8]:
        """Returns the bitmask of allowed next tokens, uint8. Raises UserError if the grammar is too complex."""
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._start_anew()
            bits = self._matcher.compute_bitmask()
            self._check()
        return np.frombuffer(bits, np.uint8)

    def take(self, token: int) -> None:
        """Advances the constraint by ``token``."""
        self._tokens.append(token)
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            self._start_anew()
            self._check()

    def _start_anew(self) -> None:
        """Continues the answer with a new matcher: the states of earlier answers count towards the grammar's limits."""
        self._matcher = self._compiled.renewed() or self._matcher
        self._matcher.consume_tokens(self._tokens)

    def _check(self) -> None:
        if fault := _one_line(self._matcher.get_error()):
            what = f"The format of the answer cannot be enforced: {fault}"
            raise UserError(what, "Make it simpler", param="response_format")


class CompiledGrammar:
    """A grammar that a worker has compiled before without a fault. Its matchers share their lexer states.

    If the states are too many, the grammar is compiled again: at once if that is fast, else in the thread of the next
    request, because the engine does not wait.
    """

    def __init__(self, make: Callable[[], llguidance.LLMatcher]) -> None:
        self._make = make
        self._seconds = 0.0
        self._is_used_up = False
        self._original = self._compile()
        self.fault = _one_line(self._original.get_error())
        """What is wrong with the grammar, "" if nothing is."""

    def matcher(self) -> llguidance.LLMatcher:
        """Returns a matcher for one answer."""
        return self._original.deep_copy()

    def renew(self) -> None:
        """Compiles the grammar again if its states are used up."""
        if self._is_used_up:
            self._original = self._compile()

    def renewed(self) -> llguidance.LLMatcher | None:
        """Returns a matcher of a newly compiled grammar, None if compiling takes long."""
        self._is_used_up = True
        if self._seconds >= MAX_RENEWAL_S:
            return None
        self.renew()
        return self.matcher()

    def _compile(self) -> llguidance.LLMatcher:
        start = time.perf_counter()
        matcher = on_stack(SERVER_STACK, self._make)
        self._seconds, self._is_used_up = time.perf_counter() - start, False
        return matcher


MakeConstraint = Callable[[], GrammarConstraint]


class GrammarCompiler:
    """Compiles grammars for the vocabulary of ``tokenizer``. Safe to use from several threads.

    Grammars refer to ``tokens`` (special tokens, and added tokens that are ``markers``) by id; these tokens never spell
    ordinary text. ``lead`` is the rule before each answer, for a leading space that is not part of its text.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Callable[[str], bool]) -> None:
        self._tokenizer = tokenizer
        self.lead = '" "? ' if tokenizer.strips_space else ""
        added = tokenizer.added_tokens.items()
        self.tokens = {text: index for index, text in added if index in tokenizer.special_ids or markers(text)}
        self._compiled = lru_cache(NUM_CACHED)(self._compile)

    def compile(self, rules: str, parts: Sequence[Grammar], param: str = "response_format") -> MakeConstraint:
        """Compiles the Lark ``rules``, which refer to ``parts`` as @p0, @p1 ..., and returns a factory of constraints.

        Raises UserError, about ``param``, if the parts, which come from the user, cannot be enforced.
        """
        named = [{**part, "name": f"p{index}"} for index, part in enumerate(parts)]
        options = '%llguidance {"no_forcing": true}\n'  # forced tokens need the model's tokenization
        try:
            texts = [json.dumps(part, allow_nan=False) for part in (*named, {"lark_grammar": options + rules})]
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"The format of the answer is not JSON ({error})", "Correct it", param=param) from None
        try:
            compiled = self._compiled(tuple(texts))
        except grammar_pool.TimedOut:
            compiled = f"it takes longer than {grammar_pool.PATIENCE_S:g} s to prepare"
        if isinstance(compiled, str):
            raise UserError(f"The format of the answer cannot be enforced: {compiled}", "Simplify it", param=param)
        compiled.renew()
        return lambda: GrammarConstraint(compiled)

    def _compile(self, texts: tuple[str, ...]) -> CompiledGrammar | str:
        """Returns the compiled grammar of ``texts`` (parts, then rules), or what is wrong with it. Raises TimedOut."""
        import llguidance  # imported here, because it is rarely needed

        *parts, rules = texts
        if sum(map(len, texts)) > MAX_LENGTH:
            return f"it is longer than {MAX_LENGTH} characters"
        grammar = f'{{"grammars": [{", ".join((rules, *parts))}]}}'
        key, data = self._vocabulary_data
        if fault := grammar_pool.shared_pool().fault(key, data, grammar):
            return _one_line(fault)
        compiled = CompiledGrammar(lambda: compile_grammar(llguidance, self._native_vocabulary, grammar))
        return compiled.fault or compiled

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        tokenizer = self._tokenizer
        tokens = [tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]
        return Vocabulary(tokens, sorted(self.tokens.values()), sorted(tokenizer.stop_ids), tokenizer.bos_id)

    @cached_property
    def _vocabulary_data(self) -> tuple[str, bytes]:
        """The hash and the bytes of the vocabulary, for workers."""
        data = self._vocabulary.to_bytes()
        return hashlib.sha256(data).hexdigest(), data

    @cached_property
    def _native_vocabulary(self) -> llguidance.LLTokenizer:
        import llguidance

        native: llguidance.LLTokenizer = self._vocabulary.native(llguidance)
        return native


def _one_line(fault: str) -> str:
    """Returns llguidance's error on one line, without quotes of the grammar."""
    text = re.sub(r"^at \d+\(\d+\): |^failed to compile JSON schema: |<non-verbose/>|\n +\d+ \|(.|\n)*", "", fault)
    return _MEANINGS.get(text.strip(), " ".join(text.split()))


_MEANINGS = dict.fromkeys(("NoExtension", "NoExtensionBias"), "there is no text that matches it")
