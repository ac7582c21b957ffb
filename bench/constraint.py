"""The cost of a constraint: tokens per second of the default model with and without one, alternately.

The small default model is the worst case: its steps are the shortest. A regular expression that matches any text leaves
the answer unchanged, so that the same tokens are compared; a JSON schema is the common case.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

import freedive
from freedive.text.format import Format
from freedive.text.request import TextInput

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "likes": {"type": "string"}},
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
FORMATS = {
    "free": None,
    "any text": Format("regex", r"(.|\n)*"),
    "schema": Format("json_schema", {"type": "array", "items": PERSON, "minItems": 50}),
}
NUM_TOKENS = 300
ROUNDS = 7


def tokens_per_s(model: freedive.LanguageModel, format: Format | None) -> float:
    """Returns the decode speed of one answer after its first token."""
    prompt = model.prepare(TextInput("People and what they like, as JSON:\n", add_special=False, format=format))
    sampling = model.sampling(max_tokens=NUM_TOKENS, temperature=0.8, seed=1, ignore_eos=True)
    generation = model.engine.submit(prompt, sampling)
    for _ in generation:
        pass
    assert generation.timings.num_generated == NUM_TOKENS
    return generation.timings.tokens_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {name: [] for name in FORMATS}
    with freedive.load("smollm2", speculation="off") as model:
        for _ in range(ROUNDS + 1):
            for name, format in FORMATS.items():
                speeds[name].append(tokens_per_s(model, format))
    free = median(speeds["free"][1:])  # the first round warms up
    seen = {
        name: {"tokens_per_s": median(values[1:]), "of_free": median(values[1:]) / free, "all": values[1:]}
        for name, values in speeds.items()
    }
    print(json.dumps({name: {k: v for k, v in each.items() if k != "all"} for name, each in seen.items()}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(seen, indent=2) + "\n")


if __name__ == "__main__":
    main()
