"""Generates answers of the real engine under valid and invalid random schemas, and checks the answers.

    python bench/schema_fuzz.py --schemas 10000

Nothing may crash, finished answers must be valid by the package jsonschema, and at the end no request may be left.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import referencing.exceptions

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "text"))
from schemas import generated, wild

import freedive
from freedive.engine.generation import EngineError, Generation
from freedive.errors import UserError
from freedive.text.format import Format
from freedive.text.request import ChatInput

PROMPT = [{"role": "user", "content": "Write JSON."}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--tokens", type=int, default=60, help="of an answer at most")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with freedive.load(options.model) as model:
        for first in range(options.first, options.first + options.schemas, options.batch):
            asked = [(seed, schema, ask(model, schema, seed, options.tokens)) for seed, schema in some(first, options)]
            for seed, schema, generation in asked:
                what = generation if isinstance(generation, str) else outcome(generation, schema)
                counts[what.partition(":")[0]] += 1
                if what.startswith("INVALID"):
                    print(seed, what, json.dumps(schema)[:300], flush=True)
        print(dict(counts), model.engine.stats())
    sys.exit(counts["INVALID"] > 0)


def some(first: int, options: argparse.Namespace) -> Sequence[tuple[int, Any]]:
    last = min(first + options.batch, options.first + options.schemas)
    return [(seed, wild(seed) if seed % 4 else generated(seed)) for seed in range(first, last)]


def ask(model: freedive.LanguageModel, schema: Any, seed: int, num_tokens: int) -> Generation | str:
    """Returns the generation under ``schema``, or the reason why it was refused."""
    try:
        prompt = model.prepare(ChatInput(tuple(PROMPT), format=Format("json_schema", schema)))
    except UserError:
        return "refused"
    sampling = model.sampling(temperature=1.5, seed=seed, max_tokens=num_tokens)
    return model.engine.submit(prompt, sampling)


def outcome(generation: Generation, schema: Any) -> str:
    """Returns how an answer ended, and whether it is valid under its schema."""
    try:
        outputs = list(generation)
    except UserError:  # the grammar is too complex
        return "given up"
    except EngineError as error:
        return f"INVALID: {error}"
    if outputs[-1].finish_reason != "stop":
        return "cut"
    text = "".join(output.text for output in outputs)
    text = text.rpartition("</think>")[2]
    checker = jsonschema.Draft202012Validator
    if not checker(checker.META_SCHEMA).is_valid(schema):
        return "finished, of nonsense"
    try:
        checker(schema).validate(json.loads(text))
    except referencing.exceptions.Unresolvable:  # in a part that decides nothing, such as an "if" alone
        return "finished, of nonsense"
    except (ValueError, jsonschema.ValidationError) as error:
        return f"INVALID: {text[:200]!r}: {str(error)[:100]}"
    return "valid"


if __name__ == "__main__":
    main()
