"""Keeps an answer to a grammar, token by token; llguidance does the work."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from freedive.errors import UserError
from freedive.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

Grammar = Mapping[str, Any]
"""One as llguidance has it: {"lark_grammar": ...} or {"json_schema": ...}."""

MAX_LENGTH = 1 << 20
"""Characters of a grammar."""

PATIENCE_S = 5.0
"""Seconds that a grammar may take to compile."""

MAX_MULTIPLE = 100_000
"""Of what, at most, numbers are asked to be multiples, in all and in common: every remainder is a state."""

NUM_CACHED = 64
"""Compiled grammars that are kept for later requests."""

_LONG = 1 << 14
_MANY_PATTERNS = 8
_MULTIPLE = re.compile(r'multipleOf\\?": *([-+.\deE]+)')

_CHECK = "import sys, llguidance; llguidance.LLMatcher.validate_grammar(sys.stdin.read())"


class Guide:
    """Follows one answer: see :class:`freedive.engine.guide.Guide`."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the end."""
        return self._matcher.is_stopped()

    def allowed(self) -> npt.NDArray[np.uint8]:
        """The tokens that may come next, a bit for each. RuntimeError when the grammar proves too hard."""
        bits = self._matcher.compute_bitmask()
        self._check()
        return np.frombuffer(bits, np.uint8)

    def take(self, token: int) -> None:
        """Take note that ``token`` has come."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if fault := _fault(self._matcher):
            raise RuntimeError(f"its form cannot be kept to: {fault}")


MakeGuide = Callable[[], Guide]


class Guides:
    """Makes guides for the vocabulary of ``tokenizer``. Safe to use from several threads.

    In grammars its ``tokens`` stand for themselves and are no way to write their text: the special ones, and those
    added ones that are ``markers``. An answer begins with ``lead``, which is not a part of its text.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Callable[[str], bool]) -> None:
        self._tokenizer = tokenizer
        self.lead = '" "? ' if tokenizer.strips_space else ""
        added = tokenizer.added_tokens.items()
        self.tokens = {text: index for index, text in added if index in tokenizer.special_ids or markers(text)}
        self._compiled = lru_cache(NUM_CACHED)(self._compile)

    def guide(self, rules: str, parts: Sequence[Grammar], param: str = "response_format") -> MakeGuide:
        """What makes a guide for each answer that matches the Lark ``rules``, which call the ``parts`` @p0, @p1 ...

        UserError, about ``param``, if the parts, which are the user's, cannot be honoured.
        """
        named = [{**part, "name": f"p{index}"} for index, part in enumerate(parts)]
        options = '%llguidance {"no_forcing": true}\n'  # else it wants texts tokenized as the model would, one by one
        try:
            texts = [json.dumps(part, allow_nan=False) for part in (*named, {"lark_grammar": options + rules})]
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"The form of the answer is not JSON ({error})", "Correct it.", param=param) from None
        compiled = self._compiled(tuple(texts))
        if isinstance(compiled, str):
            raise UserError(f"The form of the answer cannot be kept to: {compiled}", "Leave that out.", param=param)
        return lambda: Guide(compiled.deep_copy())

    def _compile(self, texts: tuple[str, ...]) -> llguidance.LLMatcher | str:
        """What matches the last of the grammars ``texts``, or what is wrong with them."""
        from llguidance import LLMatcher, LLParserLimits  # imported here: not every start needs it

        *parts, rules = texts
        if sum(map(len, texts)) > MAX_LENGTH:
            return f"it is longer than {MAX_LENGTH} characters"
        if not all(map(_counts_few_remainders, parts)):
            return f"multipleOf asks for multiples of more than {MAX_MULTIPLE}"
        if not all(map(_compiles_in_time, parts)):
            return f"it takes longer than {PATIENCE_S:g} s to prepare"
        whole = f'{{"grammars": [{", ".join((rules, *parts))}]}}'
        matcher = LLMatcher(self._vocabulary, whole, log_level=0, limits=LLParserLimits(verbose_errors=False))
        trial = matcher.deep_copy()
        trial.compute_bitmask()  # some faults show only then
        return _fault(trial) or matcher

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        from llguidance import LLTokenizer

        stops = sorted(self._tokenizer.stop_ids)
        return LLTokenizer(_Bytes(self._tokenizer, self.tokens), eos_token=stops or None)  # type: ignore[arg-type]


class _Bytes:
    """A vocabulary as llguidance asks for it: every token by its bytes."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, int]) -> None:
        self.tokens = [tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(special.values())
        self.eos_token_id = min(tokenizer.stop_ids, default=None)
        self.bos_token_id = tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, parse_special=False)


def _compiles_in_time(grammar: str) -> bool:
    """Whether ``grammar`` does. Nothing can stop llguidance, so that one which may be slow is tried elsewhere first."""
    if not _may_be_slow(grammar):
        return True
    command, whole = [sys.executable, "-P", "-c", _CHECK], f'{{"grammars": [{grammar}]}}'
    try:
        subprocess.run(command, input=whole, text=True, capture_output=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return True


def _may_be_slow(grammar: str) -> bool:
    """What regular expressions have in common takes exponential time."""
    if '"lark_grammar"' in grammar:
        return len(grammar) > _LONG or "&" in grammar or "~" in grammar
    num_patterns = grammar.count('"pattern')
    return len(grammar) > _LONG or num_patterns > _MANY_PATTERNS or (num_patterns > 0 and '"allOf"' in grammar)


def _counts_few_remainders(grammar: str) -> bool:
    numbers = [Decimal(number) for number in _MULTIPLE.findall(grammar)]
    unit = min((number.normalize().as_tuple().exponent for number in numbers), default=0)
    multiples = [abs(int(number.scaleb(-int(unit)))) for number in numbers]
    return sum(multiples) <= MAX_MULTIPLE and math.lcm(*multiples) <= MAX_MULTIPLE


def _fault(matcher: llguidance.LLMatcher) -> str:
    """What is wrong, in one line; "" if nothing is."""
    text = re.sub(
        r"^at \d+\(\d+\): |^failed to compile JSON schema: |<non-verbose/>|\n +\d+ \|(.|\n)*", "", matcher.get_error()
    )
    return " ".join(text.split())
