"""Runs the official JSON Schema Test Suite against constraints: no invalid instance may be writable.

The suite is in the source distribution of the package jsonschema: json/tests/draft7 and json/tests/draft2020-12.

    python bench/json_schema_suite.py json/tests/draft7 json/tests/draft2020-12
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from freedive.errors import UserError
from freedive.text.format import json_grammar
from freedive.text.grammar_constraint import GrammarCompiler, GrammarConstraint, MakeConstraint
from freedive.text.lark import Lark

END = 256


class Bytes:
    """A tokenizer with a token for each byte and an end token."""

    vocab_size = END + 1
    stop_ids = frozenset({END})
    special_ids = frozenset({END})
    bos_id = None
    strips_space = False

    @property
    def added_tokens(self) -> dict[str, int]:
        return {"<end>": END}

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < END else b"<end>"


def constraint_maker(compiler: GrammarCompiler, schema: Any) -> MakeConstraint:
    """Returns a factory of constraints for ``schema``. Raises UserError if the schema is refused."""
    lark = Lark(compiler.tokens)
    plain = schema if isinstance(schema, dict) else {"allOf": [schema]}
    return compiler.compile(lark.rules(lark.part(json_grammar(plain))), lark.parts)


def can_write(constraint: GrammarConstraint, text: str) -> bool:
    """Returns whether ``constraint`` accepts exactly ``text``."""
    for token in (*text.encode(), END):
        if constraint.complete:
            return bool(token == END)
        if not np.unpackbits(constraint.allowed(), bitorder="little")[token]:
            return False
        constraint.take(token)
    return True


def spellings(value: Any) -> Iterator[str]:
    """Yields texts of ``value``, with and without spaces, with other orders of keys, other numbers and escapes."""
    orders = [value, reordered(value, reverse=False), reordered(value, reverse=True)]
    for ordered in orders:
        yield from {json.dumps(ordered, separators=(",", ":"), ensure_ascii=ascii) for ascii in (True, False)}
        yield json.dumps(ordered, ensure_ascii=False)
    yield json.dumps(value, indent=1, ensure_ascii=False)
    yield escaped(json.dumps(value, ensure_ascii=False))
    yield json.dumps(otherwise(value), ensure_ascii=False)
    if isinstance(value, dict) and value:  # of a repeated key the last one counts
        key = next(iter(value))
        odd: tuple[Any, ...] = (None, 1, "a", True, [], {})
        for first in odd:
            yield "{" + f"{json.dumps(key)}:{json.dumps(first)}," + json.dumps(value, separators=(",", ":"))[1:]


def reordered(value: Any, *, reverse: bool) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key], reverse=reverse) for key in sorted(value, reverse=reverse)}
    return [reordered(item, reverse=reverse) for item in value] if isinstance(value, list) else value


def otherwise(value: Any) -> Any:
    """Returns ``value`` with whole numbers as fractions, and fractions as whole numbers."""
    if isinstance(value, dict):
        return {key: otherwise(item) for key, item in value.items()}
    if isinstance(value, list):
        return [otherwise(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else value


def escaped(text: str) -> str:
    """Returns ``text`` with its letters as escapes."""
    inside, result = False, []
    letters = iter(text)
    for letter in letters:
        if letter == "\\":
            result.append(letter + next(letters))
            continue
        inside ^= letter == '"'
        result.append(f"\\u{ord(letter):04x}" if inside and letter != '"' and ord(letter) < 65536 else letter)
    return "".join(result)


@dataclass
class Counts:
    """The counts of one keyword, which is one file of the suite."""

    schemas: int = 0
    refused: int = 0
    invalid: int = 0
    valid: int = 0
    too_strict: int = 0
    accepted: list[str] = field(default_factory=list)


def count(file: Path, compiler: GrammarCompiler, reasons: Counter[str], *, show: bool) -> Counts:
    counts = Counts()
    for case in json.loads(file.read_text()):
        counts.schemas += 1
        try:
            make_guide = constraint_maker(compiler, case["schema"])
        except UserError as error:
            if not all(not test["valid"] for test in case["tests"]):  # else nothing can be written, rightly
                counts.refused += 1
                reasons[f"{file.stem}: {error.what[:110]}"] += 1
            continue
        for test in case["tests"]:
            written = [text for text in spellings(test["data"]) if can_write(make_guide(), text)]
            if test["valid"]:
                counts.valid += 1
                counts.too_strict += not written
                if show and not written:
                    print("  too strict:", json.dumps(case["schema"])[:120], json.dumps(test["data"])[:60])
            else:
                counts.invalid += 1
                if written:
                    counts.accepted.append(f"{case['description']}: {test['description']}: {written[0][:80]}")
    return counts


def main() -> None:
    compiler = GrammarCompiler(Bytes(), lambda text: False)  # type: ignore[arg-type]
    show = "--show" in sys.argv
    num_accepted = 0
    for folder in (Path(name) for name in sys.argv[1:] if not name.startswith("--")):
        reasons: Counter[str] = Counter()
        print(f"\n{folder.name}\n\n| file | schemas | refused | invalid | accepted | valid | cannot be written |")
        print("|---|---|---|---|---|---|---|")
        total = Counts()
        for file in sorted(folder.glob("*.json")):
            counts = count(file, compiler, reasons, show=show)
            for name in ("schemas", "refused", "invalid", "valid", "too_strict", "accepted"):
                setattr(total, name, getattr(total, name) + getattr(counts, name))
            print(row(file.stem, counts), flush=True)
            for text in counts.accepted:
                print("  ACCEPTED", text)
        print(row("all", total))
        num_accepted += len(total.accepted)
        for reason, number in reasons.most_common():
            print(f"  refused {number:3}  {reason}")
    sys.exit(bool(num_accepted))


def row(name: str, counts: Counts) -> str:
    numbers = (counts.schemas, counts.refused, counts.invalid, len(counts.accepted), counts.valid, counts.too_strict)
    return f"| {name} | {' | '.join(map(str, numbers))} |"


if __name__ == "__main__":
    main()
