"""The inside of a worker process: does jobs that arrive as lines of JSON, one at a time. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP_ANSWER, TRIAL_PROMPT = 2, 1024
"""Tokens of an answer that is only there to have everything compiled and in memory; and, at most, of the prompts that
are read for that, or to try settings: enough to tell, and much less than the work itself.
"""


class Jobs:
    """What every worker can do; an engine adds ``about`` and ``generate``, and settings to choose in ``prepare``."""

    def about(self) -> dict[str, Any]:
        """Version and settings in words; ``vocab_size`` and ``max_context`` in tokens."""
        raise NotImplementedError

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        """Seconds to the first tokens of all prompts, and from there until each has ``num_tokens``.

        After the prompts come random tokens, drawn or sampled: what a model with random weights likes best soon runs
        in circles, and through the same few experts.
        """
        raise NotImplementedError

    def prepare(self, prompts: list[list[int]], num_tokens: int) -> str:
        """Warm up for work of this shape; choose settings whose effect depends on it, and say which."""
        self.generate(beginnings(prompts), min(num_tokens, WARM_UP_ANSWER))
        return ""

    def peak_memory(self) -> int:
        """Most bytes of physical memory that this program and its children have held, mapped files included."""
        return sum(_status(process, "VmHWM") * 1024 for process in _family(os.getpid()))


def beginnings(prompts: list[list[int]], length: int = TRIAL_PROMPT) -> list[list[int]]:
    return [prompt[:length] for prompt in prompts]


def _family(process: int) -> list[int]:
    """``process`` and all that descend from it."""
    everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    children = [child for child in everyone if _status(child, "PPid") == process]
    return [process, *(member for child in children for member in _family(child))]


def _status(process: int, key: str) -> int:
    """A number of the process's status; 0 if it has none, or has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def serve(make: Callable[..., Jobs], *arguments: Any) -> None:
    """Call the method that each line names, until the input ends. Between lines the process sleeps."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not be taken for an answer
    jobs = make(*arguments)
    for line in sys.stdin:
        job, given = json.loads(line)
        print(json.dumps(getattr(jobs, job)(**given)), file=answers)
