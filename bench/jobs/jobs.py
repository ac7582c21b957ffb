"""The inside of a worker process: runs jobs that arrive as lines of JSON, one at a time. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP_ANSWER, TRIAL_PROMPT = 2, 1024
"""Tokens of an answer that warms up compilation and memory, and the most prompt tokens in a warm-up or a trial of
settings, which is much less than the workload."""


class Jobs:
    """The jobs of every worker; an engine adds ``about`` and ``generate``, and a choice of settings in ``prepare``."""

    def about(self) -> dict[str, Any]:
        """Returns version and settings as text; ``vocab_size`` and ``max_context`` in tokens."""
        raise NotImplementedError

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        """Returns the seconds to the first tokens of all prompts, and from there until each has ``num_tokens``.

        Random tokens follow the prompts: the greedy tokens of a model with random weights soon repeat, and use the same
        few experts.
        """
        raise NotImplementedError

    def prepare(self, prompts: list[list[int]], num_tokens: int) -> str:
        """Warms up for work of this shape; chooses settings whose effect depends on it, and returns them as text."""
        self.generate(beginnings(prompts), min(num_tokens, WARM_UP_ANSWER))
        return ""

    def expert_traffic(self) -> tuple[int, int]:
        """Returns how often an expert was found in a cache of experts since the start, and how often not."""
        return 0, 0  # without such a cache

    def peak_memory(self) -> int:
        """Returns the peak of physical memory in bytes of this program and its children, with mapped files."""
        return sum(_status(process, "VmHWM") * 1024 for process in _family(os.getpid()))


def beginnings(prompts: list[list[int]], length: int = TRIAL_PROMPT) -> list[list[int]]:
    return [prompt[:length] for prompt in prompts]


def _family(process: int) -> list[int]:
    """Returns ``process`` and all its descendants."""
    everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    children = [child for child in everyone if _status(child, "PPid") == process]
    return [process, *(member for child in children for member in _family(child))]


def _status(process: int, key: str) -> int:
    """Returns a number of the process's status, or 0 if it has none or has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def serve(make: Callable[..., Jobs], *arguments: Any) -> None:
    """Calls the method that each line names, until the input ends. Between lines the process sleeps."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output must not be read as an answer
    jobs = make(*arguments)
    for line in sys.stdin:
        job, given = json.loads(line)
        print(json.dumps(getattr(jobs, job)(**given)), file=answers)
