"""The time to the first token after a long prefix: computed, found in memory, and found on disk by a new process.

Usage: python bench/prefix.py [MODEL] [TOKENS] (the pages are in a folder that is deleted at the end).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from statistics import median
from tempfile import TemporaryDirectory

import freedive

REPEATS = 5
QUESTION = 16
"""The number of tokens that each request does not share."""


def first_token(model: freedive.LanguageModel, beginning: list[int], source: random.Random) -> float:
    """Returns the seconds to the first token of an answer to ``beginning`` and a question."""
    prompt = beginning + source.choices(range(model.runner.vocab_size), k=QUESTION)
    start = time.perf_counter()
    next(iter(model.engine.submit(prompt, model.sampling(max_tokens=1))))
    return time.perf_counter() - start


def measure(name: str, num_tokens: int, repeats: int) -> None:
    """Prints the time of a first request with this prefix, and the median time of ``repeats`` more."""
    source = random.Random(0)
    with freedive.load(name) as model:
        beginning = source.choices(range(model.runner.vocab_size), k=num_tokens)
        first_token(model, source.choices(range(model.runner.vocab_size), k=64), source)  # warms up the machine
        print(
            first_token(model, beginning, source), median(first_token(model, beginning, source) for _ in range(repeats))
        )


def in_new_process(name: str, num_tokens: int) -> tuple[float, float]:
    command = [sys.executable, __file__, name, str(num_tokens), "measure"]
    first, later = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(first), float(later)


def main(name: str = "smollm2", num_tokens: str = "2000", what: str = "compare") -> None:
    if what == "measure":
        measure(name, int(num_tokens), REPEATS)
        return
    computed: list[float] = []
    memory: list[float] = []
    disk: list[float] = []
    for _ in range(REPEATS):
        with TemporaryDirectory() as folder:
            os.environ["FREEDIVE_PAGES"] = folder
            for first, later in (in_new_process(name, int(num_tokens)) for _ in range(2)):
                (disk if len(computed) > len(disk) else computed).append(first)
                memory.append(later)
    for title, times in (("computed", computed), ("found in memory", memory), ("found on disk", disk)):
        print(f"{title:16} {median(times):.3f} s, {median(computed) / median(times):.1f}x sooner")


if __name__ == "__main__":
    main(*sys.argv[1:])
